// Predict, then reveal: the reader commits to a number, then sees it beside the computed one.
// The answer is in the page already; without this script the <details> alone shows it.

const format = (x) => (+x.toPrecision(4)).toLocaleString("en-US", { maximumSignificantDigits: 4 });

function compare(guess, answer, unit) {
  const written = format(guess) + (unit ? "\u00a0" + unit : "");
  const error = Math.abs(guess - answer);
  if (answer === 0) return guess === 0 ? `You said ${written}: right.` : `You said ${written}.`;
  const relative = error / Math.abs(answer);
  if (relative <= 0.02) return `You said ${written}: right.`;
  const side = guess > answer ? "too high" : "too low";
  if (relative <= 0.15) return `You said ${written}: close, a little ${side}.`;
  const ratio = guess / answer;
  if (ratio >= 2) return `You said ${written}: ${format(ratio)} times too high.`;
  if (ratio > 0 && ratio <= 0.5) return `You said ${written}: ${format(1 / ratio)} times too low.`;
  // Percent of percent would be read as a difference of the two
  const by = unit === "%" ? `${error.toFixed(1)} percentage points` : `${Math.round(relative * 100)}\u00a0%`;
  return `You said ${written}: ${side} by ${by}.`;
}

for (const box of document.querySelectorAll(".predict")) {
  const guess = box.querySelector(".predict-guess");
  const input = guess.querySelector("input");
  const missing = guess.querySelector(".predict-missing");
  const reveal = box.querySelector(".predict-reveal");
  const answer = box.querySelector(".predict-answer");
  const verdict = box.querySelector(".predict-verdict");

  const commit = () => {
    const number = input.valueAsNumber;
    missing.textContent = Number.isNaN(number) ? "Enter a number first." : "";
    if (missing.textContent) return input.focus();
    verdict.textContent = compare(number, parseFloat(answer.textContent.replace(/,/g, "")), answer.dataset.unit);
    verdict.parentElement.hidden = false;
    reveal.open = true;
  };
  guess.querySelector("button").addEventListener("click", commit);
  input.addEventListener("keydown", (event) => event.key === "Enter" && commit());
  reveal.querySelector("summary").textContent = "Show the answer without a guess";
  guess.hidden = false;

  // Paper cannot be opened
  let opened = false;
  addEventListener("beforeprint", () => {
    opened = !reveal.open;
    reveal.open = true;
  });
  addEventListener("afterprint", () => {
    if (opened) reveal.open = false;
  });
}
