"use strict";
// Outlines of a mask, as OpenCV finds them: they pass through the centres of the outermost pixels.

// The eight neighbours of a pixel, clockwise, from the left.
const AROUND = [[-1, 0], [-1, -1], [0, -1], [1, -1], [1, 0], [1, 1], [0, 1], [-1, 1]];
const TOLERANCE_PX = 0.7;
const SMALLEST_AREA_PX = 8;

// Flat polygons (x and y in turn) of the regions of a mask. `inside(x, y)` is false outside the picture.
function contoursOf(inside, width, height) {
  const seen = new Uint8Array(width * height);
  const polygons = [];
  for (let y = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1) {
      if (seen[y * width + x] || !inside(x, y)) continue;
      const outline = simplified(trace(inside, x, y));
      fillSeen(inside, seen, width, x, y);
      if (areaOf(outline) >= SMALLEST_AREA_PX) polygons.push(outline.flat());
    }
  }
  return polygons;
}

// Moore's tracing, from the topmost pixel of a region, whose left neighbour is outside.
function trace(inside, startX, startY) {
  const points = [[startX, startY]];
  let [x, y, from] = [startX, startY, 0];
  let first = null;
  for (;;) {
    const step = AROUND.findIndex((_, turn) => {
      const [dx, dy] = AROUND[(from + turn) % 8];
      return inside(x + dx, y + dy);
    });
    if (step < 0) return points;
    const direction = (from + step) % 8;
    if (x === startX && y === startY) {
      if (direction === first) return points.slice(0, -1);
      first ??= direction;
    }
    x += AROUND[direction][0];
    y += AROUND[direction][1];
    points.push([x, y]);
    from = (direction + (direction % 2 ? 5 : 6)) % 8;
  }
}

function fillSeen(inside, seen, width, startX, startY) {
  const left = [[startX, startY]];
  seen[startY * width + startX] = 1;
  while (left.length) {
    const [x, y] = left.pop();
    for (const [dx, dy] of AROUND) {
      const place = (y + dy) * width + x + dx;
      if (!inside(x + dx, y + dy) || seen[place]) continue;
      seen[place] = 1;
      left.push([x + dx, y + dy]);
    }
  }
}

// Douglas and Peucker's simplification of a closed line, cut at its first point and at the one farthest from it.
function simplified(points) {
  const far = points.reduce((best, point, at) => (gap(point, points[0]) > gap(points[best], points[0]) ? at : best), 0);
  return [...half(points.slice(0, far + 1)), ...half([...points.slice(far), points[0]])];
}

// The simplified line without its last point.
function half(line) {
  const [start, end] = [line[0], line[line.length - 1]];
  let worst = 0;
  let at = 0;
  for (let index = 1; index < line.length - 1; index += 1) {
    const off = distance(line[index], start, end);
    if (off > worst) [worst, at] = [off, index];
  }
  return worst > TOLERANCE_PX ? [...half(line.slice(0, at + 1)), ...half(line.slice(at))] : [start];
}

const gap = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1]);

function distance(point, start, end) {
  const length = gap(start, end);
  if (!length) return gap(point, start);
  return Math.abs((end[0] - start[0]) * (start[1] - point[1]) - (start[0] - point[0]) * (end[1] - start[1])) / length;
}

function areaOf(points) {
  let twice = 0;
  points.forEach(([x, y], index) => {
    const [nextX, nextY] = points[(index + 1) % points.length];
    twice += x * nextY - nextX * y;
  });
  return Math.abs(twice) / 2;
}
