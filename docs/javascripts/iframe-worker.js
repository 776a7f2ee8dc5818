// Search for pages that are opened from the disk, where browsers do not start workers: a hidden frame runs the script
// of the worker instead. The theme looks for the name IFrameWorker.
if (location.protocol === "file:") {
  window.Worker = window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      const inner = frame.contentWindow;
      const deliver = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      this.loaded = new Promise((resolve) => {
        inner.document.open();
        inner.postMessage = deliver;
        inner.document.write(`<script src="${url}"></script>`);
        inner.document.close();
        const script = inner.document.querySelector("script");
        script.addEventListener("load", resolve);
      });
      this.inner = inner;
    }
    async postMessage(data) {
      await this.loaded;
      this.inner.dispatchEvent(new MessageEvent("message", { data }));
    }
  };
}
