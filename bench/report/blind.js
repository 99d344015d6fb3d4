"use strict";
const root = document.querySelector(".blind");
const data = JSON.parse(root.querySelector("script").textContent);
const shuffled = data.pairs.map((pair) => ({ pair, at: Math.random(), swap: Math.random() < 0.5 }));
shuffled.sort((a, b) => a.at - b.at);
const votes = [];
let tick = 0;
const status = document.createElement("p");
const stage = document.createElement("div");
stage.className = "pair";
const bar = document.createElement("p");
let boxes = [];
function add(text, act) {
  const made = document.createElement("button");
  made.textContent = text;
  made.addEventListener("click", act);
  bar.append(made, " ");
}
function draw() {
  stage.replaceChildren();
  boxes = [];
  if (votes.length === shuffled.length) {
    status.textContent = "All " + votes.length + " pairs are done. Export the votes.";
    return;
  }
  const { pair, swap } = shuffled[votes.length];
  status.textContent = votes.length + 1 + " of " + shuffled.length + ": " + pair.sample;
  const clips = swap ? [pair.clips[1], pair.clips[0]] : pair.clips;
  clips.forEach((clip, side) => {
    const box = document.createElement("div");
    box.className = "frame";
    box.style.aspectRatio = clip.width + " / " + clip.height;
    box.style.backgroundImage = "url(" + data.pictures[clip.file] + ")";
    box.style.backgroundSize = clip.frames * 100 + "% 100%";
    box.addEventListener("click", () => vote(side));
    stage.append(box);
    boxes.push([box, clip]);
  });
}
function vote(side) {
  if (votes.length === shuffled.length) return;
  const { pair, swap } = shuffled[votes.length];
  // Which of the pair in its own order: 0, 1, or null for no difference.
  votes.push({ id: pair.id, choice: side === null ? null : swap ? 1 - side : side });
  draw();
}
function back() {
  votes.pop();
  draw();
}
function save() {
  const text = JSON.stringify({ what: "ditcache votes", model: data.model, votes }, null, 1);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = "votes-" + data.model + ".json";
  link.click();
}
document.addEventListener("keydown", (event) => {
  const act = { ArrowLeft: () => vote(0), ArrowRight: () => vote(1), " ": () => vote(null), Backspace: back };
  if (event.key in act) {
    event.preventDefault();
    act[event.key]();
  }
});
add("left", () => vote(0));
add("no difference", () => vote(null));
add("right", () => vote(1));
add("back", back);
add("export votes", save);
root.append(status, stage, bar);
setInterval(() => {
  tick += 1;
  boxes.forEach(([box, clip]) => {
    const i = tick % clip.frames;
    box.style.backgroundPosition = (clip.frames > 1 ? (100 * i) / (clip.frames - 1) : 0) + "% 0";
  });
}, 140);
draw();
