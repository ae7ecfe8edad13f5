// The site's search runs in a worker, which browsers refuse to a page that was opened as a file. There, it runs in a hidden
// frame instead. (The theme would fetch a script for that from the network; it names its class, and so do we.)
if (location.protocol === "file:") {
  window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.documentElement.append(frame);
      this.inner = frame.contentWindow;
      const page = this.inner.document;
      page.open();
      this.inner.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      this.ready = new Promise((resolve) => {
        this.inner.isReady = resolve;
      });
      page.write(`<head><script src="${new URL(url, location)}"><\/script><script>isReady()<\/script></head>`);
      page.close();
    }

    postMessage(data) {
      this.ready.then(() => this.inner.dispatchEvent(new MessageEvent("message", { data })));
    }
  };
  window.Worker = window.IFrameWorker;
}
