"use strict";
// Each clip is one picture with its frames side by side; a frame is a window on it.
function frame(clip, index) {
  const box = document.createElement("div");
  box.className = "frame";
  box.style.aspectRatio = clip.width + " / " + clip.height;
  box.style.backgroundImage = "url(" + clip.src + ")";
  box.style.backgroundSize = clip.frames * 100 + "% 100%";
  show(box, clip, index);
  return box;
}
function show(box, clip, index) {
  const i = Math.min(index, clip.frames - 1);
  box.style.backgroundPosition = (clip.frames > 1 ? (100 * i) / (clip.frames - 1) : 0) + "% 0";
}
function button(text, act) {
  const made = document.createElement("button");
  made.textContent = text;
  made.addEventListener("click", act);
  return made;
}
function captioned(box, text) {
  const figure = document.createElement("figure");
  const caption = document.createElement("figcaption");
  caption.textContent = text;
  figure.append(box, caption);
  return figure;
}
function viewer(root) {
  const samples = JSON.parse(root.querySelector("script").textContent);
  const state = { sample: 0, index: 0, method: 0, flip: false, timer: null };
  const bar = document.createElement("div");
  bar.className = "bar";
  const name = document.createElement("span");
  const slider = document.createElement("input");
  slider.type = "range";
  slider.min = 0;
  slider.setAttribute("aria-label", "frame");
  const stage = document.createElement("div");
  let boxes = [];
  const count = () => Math.max(...Object.values(samples[state.sample].m).map((c) => c.frames));
  function place() {
    boxes.forEach(([box, clip]) => show(box, clip, state.index));
    slider.value = state.index;
  }
  function draw() {
    const one = samples[state.sample];
    const names = Object.keys(one.m);
    slider.max = count() - 1;
    slider.hidden = play.hidden = count() < 2;
    state.index = Math.min(state.index, count() - 1);
    boxes = [];
    stage.replaceChildren();
    stage.className = state.flip ? "flip" : "side";
    if (one.input && !state.flip) stage.append(captioned(frame(one.input, 0), "input"));
    const shown = state.flip ? [names[state.method % names.length]] : names;
    for (const method of shown) {
      const box = frame(one.m[method], state.index);
      boxes.push([box, one.m[method]]);
      stage.append(captioned(box, method));
    }
    mode.textContent = state.flip ? "side by side" : "flip through";
    next.hidden = previous.hidden = !state.flip;
    name.textContent = one.sample + " (" + (state.sample + 1) + "/" + samples.length + ")";
    place();
  }
  function step(by) {
    const total = Object.keys(samples[state.sample].m).length;
    state.method = (state.method + by + total) % total;
    draw();
  }
  const other = button("other sample", () => {
    state.sample = (state.sample + 1) % samples.length;
    draw();
  });
  const mode = button("", () => { state.flip = !state.flip; draw(); });
  const previous = button("◀ method", () => step(-1));
  const next = button("method ▶", () => step(1));
  const play = button("play", () => {
    if (state.timer) {
      clearInterval(state.timer);
      state.timer = null;
    } else {
      state.timer = setInterval(() => { state.index = (state.index + 1) % count(); place(); }, 140);
    }
    play.textContent = state.timer ? "stop" : "play";
  });
  slider.addEventListener("input", () => { state.index = Number(slider.value); place(); });
  bar.append(other, mode, previous, next, play, slider, name);
  root.append(bar, stage);
  draw();
}
document.querySelectorAll(".viewer").forEach(viewer);
