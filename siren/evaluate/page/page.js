// Players: one sound at a time, a playhead over its spectrogram, whole rows in turn, and listening blind.
// Without this script each clip keeps the browser's own controls.
document.documentElement.classList.add("js");
let playing = null;
let queue = [];

const players = new Map();
for (const clip of document.querySelectorAll(".clip")) {
  const button = clip.querySelector(".player"), audio = clip.querySelector("audio");
  if (!button || !audio) continue;
  players.set(button, audio);
  button.addEventListener("click", () => {
    queue = [];
    if (playing === button) stop(); else play(button);
  });
  audio.addEventListener("ended", () => { stop(); if (queue.length) play(queue.shift()); });
}

function play(button) {
  stop();
  const audio = players.get(button);
  playing = button;
  button.classList.add("playing");
  audio.currentTime = 0;
  audio.play().catch((error) => {
    if (error.name === "AbortError") return;  // it was stopped before it had begun, and another one may be playing
    stop();
    button.title = "this browser cannot play the clip: " + error.message;
  });
  requestAnimationFrame(function move() {
    if (playing !== button) return;
    const share = audio.duration ? audio.currentTime / audio.duration : 0;
    button.querySelector(".head").style.left = 100 * share + "%";
    requestAnimationFrame(move);
  });
}

function stop() {
  if (!playing) return;
  players.get(playing).pause();
  playing.classList.remove("playing");
  playing = null;
}

for (const button of document.querySelectorAll("[data-play-all]")) {
  button.addEventListener("click", () => {
    queue = [...button.closest(".prompt").querySelectorAll(".player")].filter((p) => players.has(p));
    if (queue.length) play(queue.shift());
  });
}

for (const button of document.querySelectorAll("[data-blind]")) {
  const section = button.closest("section");
  const rows = [...section.querySelectorAll(".cells")].map((row) => [row, [...row.children]]);
  button.addEventListener("click", () => {
    const blind = section.classList.toggle("blind");
    button.setAttribute("aria-pressed", blind);
    button.textContent = blind ? "Reveal" : "Listen blind";
    for (const [row, order] of rows) {
      const shown = blind ? order.map((c) => [Math.random(), c]).sort((a, b) => a[0] - b[0]).map((p) => p[1]) : order;
      row.append(...shown);
    }
  });
}
