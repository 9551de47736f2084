// Runs a job folder on onnxruntime-web: under Node from the command line, in a browser from page.html.
// docs/runtimes.md describes the folder. Usage: node runner.mjs FOLDER DIST, with DIST the dist folder of onnxruntime-web.

const PROTOCOL = 1;
const ALIGNMENT = 64;
const LONGEST_MESSAGE = 4000;
const ARRAYS = {
  float32: Float32Array,
  float64: Float64Array,
  uint8: Uint8Array,
  int8: Int8Array,
  uint16: Uint16Array,
  int16: Int16Array,
  int32: Int32Array,
  uint32: Uint32Array,
  int64: BigInt64Array,
  uint64: BigUint64Array,
  bool: Uint8Array,
};

/** Appends aligned arrays; `append` takes bytes and may be asynchronous. */
class Sink {
  constructor(append) {
    this.append = append;
    this.position = 0;
  }

  async write(bytes) {
    const gap = (ALIGNMENT - (this.position % ALIGNMENT)) % ALIGNMENT;
    if (gap > 0) await this.append(new Uint8Array(gap));
    const offset = this.position + gap;
    if (bytes.byteLength > 0) await this.append(bytes);
    this.position = offset + bytes.byteLength;
    return offset;
  }
}

/**
 * Runs every job of a folder.
 * @param ort the module onnxruntime-web.
 * @param read (file, offset, length) => Uint8Array; the whole file without offset and length.
 * @param append takes the next bytes of outputs.bin.
 * @param cpu what computes, for the answer.
 * @returns the answer document.
 */
export async function runJobs({ ort, read, append, cpu }) {
  const document = JSON.parse(new TextDecoder().decode(await read("job.json")));
  if (document.protocol !== PROTOCOL) throw new Error(`job.json has protocol ${document.protocol}, this runner knows ${PROTOCOL}`);
  ort.env.logLevel = "error";
  // One thread, whatever the policy says: more need a browser page that is isolated across origins. Codes do not depend on it.
  ort.env.wasm.numThreads = 1;
  const sink = new Sink(append);
  const answers = document.timing ? await timeJobs({ ort, read, document }) : [];
  if (!document.timing) for (const job of document.jobs) answers.push(await runJob({ ort, read, sink, job, policy: document.policy }));
  const runtime = { name: "onnxruntime-web", version: ort.env.versions.web, cpu };
  return { protocol: PROTOCOL, runtime, answers };
}

/** Times every model on its first run, rounds interleaved: {times_ms} each, or {refused}. */
async function timeJobs({ ort, read, document }) {
  const { warmup, min_rounds, max_rounds, seconds } = document.timing;
  const answers = [];
  const timed = [];
  for (const job of document.jobs) {
    let session;
    try {
      session = await openSession({ ort, read, job, policy: document.policy });
      const feeds = await readFeeds({ ort, read, tensors: job.runs[0] });
      const run = async () => {
        for (const tensor of Object.values(await session.run(feeds, job.outputs))) tensor.dispose();
      };
      for (let i = 0; i < warmup; i++) await run();
      const times_ms = [];
      answers.push({ times_ms });
      timed.push({ session, run, times_ms });
    } catch (error) {
      answers.push(refusal(error));
      await session?.release();
    }
  }
  const deadline = performance.now() + 1000 * seconds;
  for (let turn = 0; turn < (timed.length > 0 ? max_rounds : 0); turn++) {
    if (turn >= min_rounds && performance.now() > deadline) break;
    // Each round starts with another model, so that none always runs in the wake of the same one.
    for (let position = 0; position < timed.length; position++) {
      const { run, times_ms } = timed[(turn + position) % timed.length];
      const start = performance.now();
      await run();
      times_ms.push(performance.now() - start);
    }
  }
  for (const { session } of timed) await session.release();
  return answers;
}

async function openSession({ ort, read, job, policy }) {
  return await ort.InferenceSession.create(await read(job.model), {
    executionProviders: ["wasm"],
    graphOptimizationLevel: policy.optimization_level,
    logSeverityLevel: 3,
    extra: policy.config,
  });
}

function refusal(error) {
  return { refused: String(error?.message ?? error).slice(0, LONGEST_MESSAGE) || "no message" };
}

async function runJob({ ort, read, sink, job, policy }) {
  let session;
  try {
    session = await openSession({ ort, read, job, policy });
    const runs = [];
    for (const tensors of job.runs) runs.push(await runOnce({ ort, read, sink, session, tensors, outputs: job.outputs }));
    return { runs };
  } catch (error) {
    return refusal(error);
  } finally {
    await session?.release();
  }
}

async function readFeeds({ ort, read, tensors }) {
  const feeds = {};
  for (const { name, dtype, shape, offset } of tensors) {
    const length = shape.reduce((size, side) => size * side, 1) * ARRAYS[dtype].BYTES_PER_ELEMENT;
    const bytes = length > 0 ? await read("inputs.bin", offset, length) : new Uint8Array(0);
    if (bytes.byteLength !== length) throw new Error(`inputs.bin ends inside tensor ${name}`);
    // A buffer of its own: a typed array must start at a multiple of its element size.
    feeds[name] = new ort.Tensor(dtype, new ARRAYS[dtype](new Uint8Array(bytes).buffer), shape);
  }
  return feeds;
}

async function runOnce({ ort, read, sink, session, tensors, outputs }) {
  const feeds = await readFeeds({ ort, read, tensors });
  const found = await session.run(feeds, outputs);
  const entries = [];
  for (const name of outputs) {
    const tensor = found[name];
    if (!(tensor.type in ARRAYS)) throw new Error(`output ${name} has type ${tensor.type}, allowed ${Object.keys(ARRAYS).join(", ")}`);
    const data = tensor.data;
    const offset = await sink.write(new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
    entries.push({ name, dtype: tensor.type, shape: [...tensor.dims], offset });
    tensor.dispose();
  }
  for (const tensor of Object.values(feeds)) tensor.dispose();
  return entries;
}

async function main(folder, dist) {
  const fs = await import("node:fs");
  const os = await import("node:os");
  const path = await import("node:path");
  const { pathToFileURL } = await import("node:url");
  const ort = await import(pathToFileURL(path.resolve(dist, "ort.node.min.mjs")).href);

  function read(name, offset, length) {
    if (path.basename(name) !== name) throw new Error(`job.json names the file ${name}, allowed is a plain file name`);
    const file = path.join(folder, name);
    if (offset === undefined) return fs.readFileSync(file);
    const handle = fs.openSync(file, "r");
    try {
      const bytes = new Uint8Array(length);
      const count = fs.readSync(handle, bytes, 0, length, offset);
      return bytes.subarray(0, count);
    } finally {
      fs.closeSync(handle);
    }
  }

  const sink = fs.openSync(path.join(folder, "outputs.bin"), "w");
  const cpu = `wasm simd, Node ${process.versions.node}, ${process.arch} ${os.cpus()[0]?.model ?? ""}`.trim();
  const answer = await runJobs({ ort, read, append: (bytes) => void fs.writeSync(sink, bytes), cpu });
  fs.closeSync(sink);
  // The document comes last and at once: where it is, everything it names is there.
  const unfinished = path.join(folder, "answer.json.part");
  fs.writeFileSync(unfinished, JSON.stringify(answer));
  fs.renameSync(unfinished, path.join(folder, "answer.json"));
}

if (typeof process !== "undefined" && process.versions?.node && /runner\.mjs$/.test(process.argv[1] ?? "")) {
  await main(process.argv[2], process.argv[3]);
}
