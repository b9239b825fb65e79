// Boxes on the counting tab's picture by dragging: a new one, or one that is there moved or resized by a corner. While the
// pointer is down an outline follows it; what was dragged goes to the server through a hidden field as {index, box_xyxy},
// index -1 for a new box, shares of the picture's width and height.
(() => {
  const NEAR_CORNER = 0.045, LEAST = 0.01;
  let drag = null, swallow = false;

  const field = () => document.querySelector("#count-dragged textarea, #count-dragged input");
  const tool = () => document.querySelector("#count-tool input:checked")?.value ?? "";
  const boxes = () => {
    try { return JSON.parse(document.querySelector("#count-boxes textarea, #count-boxes input").value); } catch { return []; }
  };
  const clip = (v) => Math.min(1, Math.max(0, v));

  // Where the picture's own pixels lie: it keeps its shape within its element.
  function frame(img) {
    const r = img.getBoundingClientRect(), scale = Math.min(r.width / img.naturalWidth, r.height / img.naturalHeight);
    const width = img.naturalWidth * scale, height = img.naturalHeight * scale;
    return {left: r.left + (r.width - width) / 2, top: r.top + (r.height - height) / 2, width, height};
  }
  const place = (event, f) => [clip((event.clientX - f.left) / f.width), clip((event.clientY - f.top) / f.height)];

  // A corner within reach, else the smallest box around the place, else none.
  function grip(all, [x, y]) {
    for (const [index, b] of all.entries())
      for (const i of [0, 2])
        for (const j of [1, 3])
          if (Math.hypot(b[i] - x, b[j] - y) < NEAR_CORNER) return {index, corner: [i, j]};
    let best = null, area = Infinity;
    for (const [index, b] of all.entries()) {
      const own = (b[2] - b[0]) * (b[3] - b[1]);
      if (b[0] <= x && x <= b[2] && b[1] <= y && y <= b[3] && own < area) [best, area] = [{index, corner: null}, own];
    }
    return best;
  }

  function dragged([x, y]) {
    const [x0, y0] = drag.start;
    if (drag.index < 0) return [Math.min(x, x0), Math.min(y, y0), Math.max(x, x0), Math.max(y, y0)];
    const b = [...drag.box];
    if (drag.corner) {
      [b[drag.corner[0]], b[drag.corner[1]]] = [x, y];
      return [Math.min(b[0], b[2]), Math.min(b[1], b[3]), Math.max(b[0], b[2]), Math.max(b[1], b[3])];
    }
    const dx = Math.min(1 - b[2], Math.max(-b[0], x - x0)), dy = Math.min(1 - b[3], Math.max(-b[1], y - y0));
    return [b[0] + dx, b[1] + dy, b[2] + dx, b[3] + dy];
  }

  function show(b) {
    const f = drag.frame, s = drag.outline.style;
    s.left = `${f.left + b[0] * f.width}px`; s.top = `${f.top + b[1] * f.height}px`;
    s.width = `${(b[2] - b[0]) * f.width}px`; s.height = `${(b[3] - b[1]) * f.height}px`;
  }

  function stop() {
    drag?.outline?.remove();
    drag = null;
  }

  document.addEventListener("pointerdown", (event) => {
    const img = event.target.closest?.("#count-picture img");
    if (!img || !event.isPrimary || event.button) return;
    const start = place(event, frame(img));
    if (tool().startsWith("Add")) drag = {index: -1, start, img, frame: frame(img)};
    else if (tool().startsWith("Move")) {
      const all = boxes(), found = grip(all, start);
      if (found) drag = {...found, box: all[found.index], start, img, frame: frame(img)};
    }
  });
  document.addEventListener("pointermove", (event) => {
    if (!drag || !event.isPrimary) return;
    const here = place(event, drag.frame);
    if (!drag.outline) {
      if (Math.hypot(here[0] - drag.start[0], here[1] - drag.start[1]) < LEAST) return;  // a click that trembles
      drag.outline = document.body.appendChild(document.createElement("div"));
      drag.outline.style.cssText = "position:fixed;border:2px dashed #fff;outline:2px dashed #000;pointer-events:none;z-index:99";
    }
    show(dragged(here));
  });
  document.addEventListener("pointerup", (event) => {
    if (!drag || !event.isPrimary) return;
    const moved = drag.outline && {index: drag.index, box_xyxy: dragged(place(event, drag.frame))};
    stop();
    if (!moved) return;  // a click, which the server hears of itself
    swallow = true;
    setTimeout(() => { swallow = false; }, 0);
    const target = field();
    target.value = JSON.stringify({...moved, at: Date.now()});
    target.dispatchEvent(new Event("input", {bubbles: true}));
  });
  document.addEventListener("pointercancel", stop);
  document.addEventListener("dragstart", (event) => {
    if (event.target.closest?.("#count-picture")) event.preventDefault();
  }, true);
  document.addEventListener("touchmove", (event) => { if (drag) event.preventDefault(); }, {passive: false});
  document.addEventListener("click", (event) => {
    if (swallow && event.target.closest?.("#count-picture")) { event.stopPropagation(); event.preventDefault(); }
  }, true);
})();
