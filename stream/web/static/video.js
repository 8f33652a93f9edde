"use strict";
// Shows the video of a source: H.264 from a WebSocket, which WebCodecs decodes onto a canvas. JPEGs replace it where the
// browser has no WebCodecs (for instance because the page is not a secure context), where it fails, and with ?mjpeg.

class LiveVideo {
  constructor(section) {
    this.picture = section.querySelector(".picture");
    this.path = `/live/${section.dataset.number}`;
    this.close = null; // ends the video that is shown
    const jpegs = new URLSearchParams(location.search).has("mjpeg");
    if (jpegs || !("VideoDecoder" in window)) this.useJpegs();
  }

  // Shows the video, or ends it. It may be called again and again.
  show(wanted) {
    if (this.picture instanceof HTMLImageElement) this.showJpegs(wanted);
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
        this.draw(frame);
        socket.send("shown");
      },
      error: () => this.fail(),
    });
    let sequence = "";
    let type = "delta";
    socket.onmessage = ({ data }) => {
      if (data instanceof ArrayBuffer) {
        decoder.decode(new EncodedVideoChunk({ type, data, timestamp: performance.now() * 1000 }));
        type = "delta";
        return;
      }
      if (data !== sequence) decoder.configure({ ...JSON.parse(data), optimizeForLatency: true });
      sequence = data;
      type = "key";
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

  draw(frame) {
    const canvas = this.picture;
    if (canvas.width !== frame.displayWidth || canvas.height !== frame.displayHeight) {
      canvas.width = frame.displayWidth;
      canvas.height = frame.displayHeight;
    }
    canvas.getContext("2d", { alpha: false }).drawImage(frame, 0, 0);
    frame.close();
  }
}
