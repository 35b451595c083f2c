// Runs gpuedu in WebAssembly, apart from the page: one worker for all explorers of a page.
// In: {boot: {pyodide, archive}}, then {ticket, reference, values, table}. Out: {ready}, {ticket, answer} or {failed}.

let answer; // gpuedu.explorer.answer: JSON in, JSON out

async function boot({ pyodide, archive }) {
  const [{ loadPyodide }, response] = await Promise.all([import(pyodide + "pyodide.mjs"), fetch(archive)]);
  if (!response.ok) throw new Error(`${archive}: ${response.status} ${response.statusText}`);
  const python = await Promise.race([loadPyodide({ indexURL: pyodide }), errorOnConsole()]);
  python.unpackArchive(await response.arrayBuffer(), "zip");
  answer = python.pyimport("gpuedu.explorer").answer;
}

// Rejects with the first error that is logged: of WebAssembly that does not start, Pyodide tells the console alone
// and then waits for ever.
function errorOnConsole() {
  return new Promise((_, reject) => {
    for (const level of ["warn", "error"]) {
      const log = console[level];
      console[level] = (...things) => {
        log(...things);
        const error = things.find((thing) => thing instanceof Error);
        if (error) reject(error);
      };
    }
  });
}

const lastLine = (error) => String(error.message ?? error).trim().split("\n").at(-1);

self.onmessage = async ({ data: { boot: urls, ticket, reference, values, table } }) => {
  try {
    if (urls) await boot(urls);
    self.postMessage(urls ? { ready: true } : { ticket, answer: answer(reference, values, table) });
  } catch (error) {
    self.postMessage({ failed: lastLine(error) });
  }
};
