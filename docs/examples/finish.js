// Finish a server's intermediates with one call per batch, without Python.
//
//     npm install --ignore-scripts onnxruntime-node      (its CPU library is inside the package)
//     node finish.js client.onnx intermediates.safetensors pictures
//
// client.onnx comes from `collafuse export-client --graph whole`. The pictures are PGM (grey) or PPM (RGB) files.
'use strict';
const fs = require('node:fs');
const path = require('node:path');
const ort = require('onnxruntime-node');

const BATCH_SIZE = 16;

// --- the two files ---------------------------------------------------------------------------------------------

/** Tensors by name ({dtype, shape, buffer}) and our metadata of a safetensors file. */
function readSafetensors(file) {
  const data = fs.readFileSync(file);
  const start = 8 + Number(data.readBigUInt64LE(0));
  const header = JSON.parse(data.toString('utf8', 8, start));
  const metadata = JSON.parse(header.__metadata__.collafuse);
  delete header.__metadata__;
  const tensors = {};
  for (const [name, { dtype, shape, data_offsets: [from, to] }] of Object.entries(header)) {
    const offset = data.byteOffset + start;
    tensors[name] = { dtype, shape, buffer: data.buffer.slice(offset + from, offset + to) };
  }
  return { tensors, metadata };
}

/** Number and value of each field of a protocol buffers message; ONNX files are one. Nothing is checked. */
function* fieldsOf(data) {
  let at = 0;
  const varint = () => {
    let value = 0;
    for (let factor = 1; ; factor *= 128) {
      const byte = data[at++];
      value += (byte & 127) * factor;
      if (byte < 128) return value;
    }
  };
  while (at < data.length) {
    const tag = varint();
    let value = varint();
    if ((tag & 7) === 2) {
      at += value;
      value = data.subarray(at - value, at);
    }
    yield [Math.floor(tag / 8), value];
  }
}

/** What a bundle says of itself: metadata_props, field 14 of an ONNX model. */
function readBundle(file) {
  for (const [number, value] of fieldsOf(fs.readFileSync(file))) {
    if (number !== 14) continue;
    const entry = Object.fromEntries(fieldsOf(value));
    if (entry[1].toString() === 'collafuse') return JSON.parse(entry[2].toString());
  }
  throw new Error(`${file} is no client bundle; make one with collafuse export-client.`);
}

// --- what goes in ----------------------------------------------------------------------------------------------

/** Numbers in a condition: the bundle's K labels, T numbers of a text where it takes text, and a flag. */
const widthOf = (bundle) => bundle.label_names.length + (bundle.text_width ?? 0) + 1;

/** A number in half precision by its 16 bits. */
function half(bits) {
  const [exponent, fraction] = [(bits >> 10) & 31, bits & 1023];
  const size = exponent === 0 ? fraction * 2 ** -24 : (1 + fraction / 1024) * 2 ** (exponent - 15);
  return bits & 0x8000 ? -size : size;
}

/** labels [N, K + T + 1]: labels matched by name, the text, and a last column that says "no condition". */
function conditionsOf(tensors, metadata, bundle, count) {
  const [names, known, width] = [metadata.label_names ?? [], bundle.label_names, widthOf(bundle)];
  const rows = new Float32Array(count * width);
  const labels = tensors.labels && new Uint8Array(tensors.labels.buffer);
  const text = tensors.text && new Uint16Array(tensors.text.buffer);
  if (text && metadata.text_encoder !== bundle.text_encoder) {
    throw new Error(`text of ${metadata.text_encoder} does not fit the bundle's ${bundle.text_encoder ?? 'none'}.`);
  }
  const lacking = [known.length > 0 && !labels && 'labels', bundle.text_encoder && !text && 'text'].filter(Boolean);
  if (!bundle.blank_trained && lacking.length > 0) {
    throw new Error(`the images carry no ${lacking.join(' and no ')}, and the client was never trained without; let the ` +
      `server deliver for a label (${known.join(', ') || 'it knows none'}) and a text (${bundle.text_encoder ?? 'it takes none'}).`);
  }
  for (let row = 0; row < count; row++) {
    // Nothing is said of an image: no text, and no labels or none that the bundle knows of.
    if (!text && (!labels || known.length === 0)) rows[row * width + width - 1] = 1;
    for (let i = 0; text && i < bundle.text_width; i++) {
      rows[row * width + known.length + i] = half(text[row * bundle.text_width + i]);
    }
    names.forEach((name, column) => {
      if (!labels[row * names.length + column]) return;
      if (!known.includes(name)) throw new Error(`label ${name} is not known to the bundle: ${known.join(', ')}`);
      rows[row * width + known.indexOf(name)] = 1;
    });
  }
  return rows;
}

/** Whether this machine computes what the bundle's maker computed; see known_answer_input in core/knownanswer.py. */
async function checkKnownAnswer(session, bundle) {
  const { sigmas, values, tolerance } = bundle.known_answer;
  const [count, width] = [sigmas.length, widthOf(bundle)];
  const [names, numbers] = [bundle.label_names.length, bundle.text_width ?? 0];
  const size = bundle.image_shape.reduce((a, b) => a * b);
  const x = Float32Array.from({ length: count * size }, (_, i) =>
    (0.5 * Math.cos(0.37 * i) + 0.5 * Math.sin(1.73 * i)) * (0.5 + Math.fround(sigmas[Math.floor(i / size)])));
  const labels = new Float32Array(count * width);
  for (let row = 0; row < count; row++) {
    if (row === 0 || width === 1) {
      labels[row * width + width - 1] = 1;
      continue;
    }
    if (names > 0) labels[row * width + (row - 1) % names] = 1;
    for (let i = 0; i < numbers; i++) labels[row * width + names + i] = Math.SQRT2 * Math.sin(1.1 * row + 2.3 * i);
  }
  const pixels = await finish(session, bundle, x, labels, count);
  const step = (pixels.length - 1) / (values.length - 1);
  const errors = values.map((value, i) => Math.abs(value - pixels[Math.floor(i * step)]));
  const error = Math.max(...errors);
  if (!(error <= tolerance)) {
    throw new Error(`the known answer is off by ${error} grey levels, allowed are ${tolerance}.`);
  }
}

// --- the call --------------------------------------------------------------------------------------------------

/** Pixels, one byte each, [N, H, W, C]. */
async function finish(session, bundle, x, labels, count) {
  const { pixels } = await session.run({
    x: new ort.Tensor('float32', x, [count, ...bundle.image_shape]),
    labels: new ort.Tensor('float32', labels, [count, widthOf(bundle)]),
  });
  return pixels.data;
}

async function main(bundleFile, intermediatesFile, folder) {
  const bundle = readBundle(bundleFile);
  const { tensors, metadata } = readSafetensors(intermediatesFile);
  const { dtype, shape: [count, ...imageShape], buffer } = tensors.x;
  if (bundle.graph !== 'whole') throw new Error(`${bundleFile} holds one step; export it with --graph whole.`);
  if (String(imageShape) !== String(bundle.image_shape) || Math.abs(metadata.sigma / bundle.sigma_max - 1) > 1e-6) {
    throw new Error(`images [${imageShape}] at sigma ${metadata.sigma} do not fit the bundle's ` +
      `[${bundle.image_shape}] at sigma ${bundle.sigma_max}.`);
  }
  if (![1, 3].includes(imageShape[0])) {
    throw new Error(`images with ${imageShape[0]} channels; PGM and PPM files hold 1 (grey) or 3 (RGB).`);
  }
  if (dtype !== 'F32') throw new Error(`x is ${dtype}, expected F32; let the server deliver without --half.`);
  const x = new Float32Array(buffer);
  if (!x.every(Number.isFinite)) throw new Error(`${intermediatesFile} holds values that are not finite.`);
  const conditions = conditionsOf(tensors, metadata, bundle, count);

  const session = await ort.InferenceSession.create(bundleFile);
  await checkKnownAnswer(session, bundle);
  const [channels, height, width] = imageShape;
  const [size, columns] = [channels * height * width, widthOf(bundle)];
  const header = Buffer.from(`P${channels === 1 ? 5 : 6}\n${width} ${height}\n255\n`);
  fs.mkdirSync(folder, { recursive: true });
  for (let from = 0; from < count; from += BATCH_SIZE) {
    const to = Math.min(from + BATCH_SIZE, count);
    const pixels = await finish(session, bundle, x.subarray(from * size, to * size),
      conditions.subarray(from * columns, to * columns), to - from);
    for (let index = from; index < to; index++) {
      const one = pixels.subarray((index - from) * size, (index - from + 1) * size);
      const name = `${String(index).padStart(6, '0')}.${channels === 1 ? 'pgm' : 'ppm'}`;
      fs.writeFileSync(path.join(folder, name), Buffer.concat([header, one]));
    }
  }
  console.log(JSON.stringify({ images: count, folder, onnxruntime: ort.env.versions.node }));
}

main(...process.argv.slice(2)).catch((error) => {
  console.error(`error: ${error.message}`);
  process.exitCode = 1;
});
