// Runs the ONNX files in ONNX Runtime Web: on the graphics card through WebGPU where there is one, else in WebAssembly.
//
// A graphics driver can compute wrongly without an error. So the model first answers a known input, and an engine whose
// answer is not the one that Python wrote into the settings is not used.

const RUNTIMES = { webgpu: "./onnxruntime/ort.webgpu.bundle.min.mjs", wasm: "./onnxruntime/ort.wasm.bundle.min.mjs" };
const MOST_THREADS = 4;
const TOLERANCE = 1e-3; // of a probability

export class Engine {
  /**
   * @param settings as settings.json has them.
   * @param weights name of one of `settings.weights`.
   */
  static async load(settings, weights) {
    if (typeof WebAssembly !== "object") {
      throw new Error("This browser has no WebAssembly, which the page needs: use a current Firefox, Chrome, Edge or Safari.");
    }
    const names = [settings.weights[weights].file, settings.detector.file, settings.points.file];
    const files = await Promise.all(names.map(fetched));
    let problem;
    for (const kind of await kinds()) {
      try {
        const engine = new Engine();
        await engine.start(kind, settings, ...files);
        await engine.check(settings.weights[weights].check);
        return engine;
      } catch (error) {
        problem = error;
        console.warn(`${kind}: ${error.message}`);
      }
    }
    throw new Error(`The model could not be started: ${problem.message}`);
  }

  async start(kind, settings, model, detector, points) {
    const runtime = await import(RUNTIMES[kind]);
    this.kind = kind;
    this.settings = settings;
    this.threads = self.crossOriginIsolated ? Math.min(MOST_THREADS, navigator.hardwareConcurrency) : 1;
    runtime.env.wasm.numThreads = this.threads;
    const session = (file, kind) => runtime.InferenceSession.create(file, { executionProviders: [kind] });
    this.Tensor = runtime.Tensor;
    this.model = await session(model, kind);
    this.detector = await session(detector, "wasm"); // too small for a graphics card
    this.points = await session(points, "wasm");
  }

  /** Throw an error if the distributions of the known input are not `expected`. */
  async check(expected) {
    const { shape } = this.settings.input;
    const size = shape.slice(1).reduce((product, side) => product * side);
    const known = Float32Array.from({ length: size }, (_, place) => ((place * 7919) % 255) / 127.5 - 1);
    const found = await this.distributions(known);
    for (const [name, numbers] of Object.entries(expected)) {
      const difference = Math.max(...numbers.map((number, place) => Math.abs(number - found[name][place])));
      if (!(difference <= TOLERANCE)) throw new Error(`answers differ from those of Python by ${difference.toPrecision(2)}.`);
    }
  }

  /** Format's name -> the distributions of one crop, from its `pixelValues`. */
  async distributions(values) {
    const { name, shape } = this.settings.input;
    const outputs = await this.model.run({ [name]: new this.Tensor("float32", values, [1, ...shape.slice(1)]) });
    return Object.fromEntries(Object.entries(outputs).map(([format, tensor]) => [format, tensor.data]));
  }

  /** The answers of the network of face points about one crop. */
  async place(values, shape) {
    const { answers } = await this.points.run({ crops: new this.Tensor("float32", values, shape) });
    return answers.data;
  }

  /** The answers of the face detector to its input: output's name -> numbers. */
  async detect(values, shape) {
    const outputs = await this.detector.run({ input: new this.Tensor("float32", values, shape) });
    return Object.fromEntries(Object.entries(outputs).map(([name, tensor]) => [name, tensor.data]));
  }
}

/** The engines to try, the fastest first. */
async function kinds() {
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  const software = !adapter || (adapter.info?.isFallbackAdapter ?? adapter.isFallbackAdapter);
  return software ? ["wasm"] : ["webgpu", "wasm"];
}

async function fetched(file) {
  const answer = await fetch(file).catch((error) => error);
  if (!answer.ok) throw new Error(`${file} could not be loaded (${answer.status ?? answer.message}): reload the page.`);
  return new Uint8Array(await answer.arrayBuffer());
}
