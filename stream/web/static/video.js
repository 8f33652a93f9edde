"use strict";
// Shows the video of a source: H.264 from a WebSocket, which WebCodecs decodes onto a canvas. It has no markers: they come
// with each picture and are drawn here. JPEGs, which have them, replace it where the browser has no WebCodecs (for
// instance because the page is not a secure context), where it fails, and with ?mjpeg.

// As the overlay of polypstream writes labels, for a picture of 1080 lines; and the smallest size.
const LABEL = { size: 42, border: 6, gap: 6 };
const SMALLEST_LABEL = 16;

function drawLabel(context, text, points) {
  const scale = context.canvas.height / 1080;
  const size = Math.max(SMALLEST_LABEL, LABEL.size * scale);
  context.font = `${size}px sans-serif`;
  const across = Math.min(...points.map(([x]) => x));
  const down = Math.min(...points.map(([, y]) => y)) - LABEL.gap * scale;
  const x = Math.min(across, context.canvas.width - context.measureText(text).width);
  const y = Math.max(down, size);
  context.lineWidth = Math.max(2, 2 * LABEL.border * scale);
  context.strokeStyle = "black";
  context.strokeText(text, x, y);
  context.fillText(text, x, y);
}

function drawMarkers(context, { colour, opacity, width, polygons, labels }) {
  context.lineJoin = "round";
  polygons.forEach((points, place) => {
    const outline = new Path2D();
    for (const [x, y] of points) outline.lineTo(x, y);
    outline.closePath();
    context.fillStyle = context.strokeStyle = colour;
    context.lineWidth = width;
    context.globalAlpha = opacity;
    context.fill(outline);
    context.globalAlpha = 1;
    if (width) context.stroke(outline);
    if (labels[place]) drawLabel(context, labels[place], points);
  });
}

class LiveVideo {
  constructor(section) {
    this.picture = section.querySelector(".picture");
    this.path = `/live/${section.dataset.number}`;
    this.close = null; // ends the video that is shown
    this.marked = true; // whether markers are drawn
    const jpegs = new URLSearchParams(location.search).has("mjpeg");
    if (jpegs || !("VideoDecoder" in window)) this.useJpegs();
  }

  // Whether markers can be switched off: those of JPEGs are in the picture.
  get drawsMarkers() {
    return !(this.picture instanceof HTMLImageElement);
  }

  // Shows the video, or ends it. It may be called again and again.
  show(wanted) {
    if (!this.drawsMarkers) this.showJpegs(wanted);
    else if (!wanted) this.close?.();
    else if (this.close === null) this.open();
  }

  useJpegs() {
    const image = document.createElement("img");
    image.className = this.picture.className;
    image.alt = this.picture.getAttribute("aria-label");
    this.picture.replaceWith(image);
    this.picture = image;
  }

  // After a broken connection a stream keeps its last frame and does not reconnect, so it must be requested again.
  showJpegs(wanted) {
    if (!wanted) this.picture.removeAttribute("src");
    else if (!this.picture.hasAttribute("src")) this.picture.src = `${this.path}/stream?again=${Date.now()}`;
  }

  open() {
    const address = new URL(`${this.path}/video`, location.href);
    address.protocol = address.protocol.replace("http", "ws");
    const socket = new WebSocket(address);
    socket.binaryType = "arraybuffer";
    let shown = false;
    const decoder = new VideoDecoder({
      output: (frame) => {
        shown = true;
        this.draw(frame, markers.get(frame.timestamp));
        markers.delete(frame.timestamp);
        if (socket.readyState === WebSocket.OPEN) socket.send("shown");
      },
      error: () => this.fail(),
    });
    const markers = new Map(); // of the pictures that are being decoded, by their timestamps
    let sequence = "";
    let timestamp = 0;
    let told = {}; // what was said of the next picture
    socket.onmessage = ({ data }) => {
      if (!(data instanceof ArrayBuffer)) {
        told = JSON.parse(data);
        return;
      }
      const { markers: drawn, ...config } = told;
      told = {};
      if (config.codec && JSON.stringify(config) !== sequence) {
        decoder.configure({ ...config, optimizeForLatency: true });
        sequence = JSON.stringify(config);
      }
      timestamp += 1000;
      if (drawn) markers.set(timestamp, drawn);
      decoder.decode(new EncodedVideoChunk({ type: config.codec ? "key" : "delta", data, timestamp }));
    };
    socket.onclose = () => (shown ? this.close() : this.fail());
    this.close = () => {
      this.close = socket.onmessage = socket.onclose = null;
      socket.close();
      if (decoder.state !== "closed") decoder.close();
      this.picture.width = this.picture.width; // clears it: an old picture must not pass for a live one
    };
  }

  fail() {
    this.close();
    this.useJpegs();
    this.show(true);
  }

  draw(frame, markers) {
    const canvas = this.picture;
    if (canvas.width !== frame.displayWidth || canvas.height !== frame.displayHeight) {
      canvas.width = frame.displayWidth;
      canvas.height = frame.displayHeight;
    }
    const context = canvas.getContext("2d", { alpha: false });
    context.drawImage(frame, 0, 0);
    frame.close();
    if (markers && this.marked) drawMarkers(context, markers);
  }
}
