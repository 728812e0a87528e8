// The search runs in a Worker, and browsers start none for a page that was opened from a file. There a hidden frame takes
// the worker's place: what it posts becomes a "message" event of this object.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      document.body.append(this.frame)
      const inside = this.frame.contentDocument
      this.frame.contentWindow.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }))
      const script = inside.createElement("script")
      script.src = url
      this.loaded = new Promise((done) => (script.onload = done))
      inside.head.append(script)
    }

    postMessage(data) {
      const frame = this.frame.contentWindow
      this.loaded.then(() => frame.dispatchEvent(new frame.MessageEvent("message", { data })))
    }

    terminate() {
      this.frame.remove()
    }
  }
}
