// What distributions say: the numbers of a reading, and the contradictions between formats.
//
// The same as `reading_of` in au_recognition/runner.py. The mean with the mirror image and the calibration are in the
// ONNX file; thresholds, scales and rules come with the settings.

const fourDigits = (number) => Number(number.toFixed(4));

/** Pixels of a crop as the model takes them: (3, side, side), normalized. */
export function pixelValues({ width, height, pixels }, { mean, std }) {
  const area = width * height;
  const values = new Float32Array(3 * area);
  for (let channel = 0; channel < 3; channel++) {
    for (let place = 0; place < area; place++) {
      values[channel * area + place] = (pixels[3 * place + channel] / 255 - mean[channel]) / std[channel];
    }
  }
  return values;
}

/**
 * The answer in one format: {value, expected, probability, present, low, high}, each a list in the order of its labels.
 *
 * @param shares the distributions, one AU after the other.
 * @param band the two quantiles between which `low` and `high` lie.
 */
export function answerOf(shares, format, band) {
  const { values, labels, scale } = format;
  const answer = { value: [], expected: [], probability: [], present: [], low: [], high: [] };
  labels.forEach((_, row) => {
    const of_au = Array.from(shares.subarray(row * values.length, (row + 1) * values.length));
    const mean = of_au.reduce((sum, part, place) => sum + part * values[place], 0);
    const mass = of_au.reduce((sum, part, place) => sum + (values[place] >= format.presence_threshold ? part : 0), 0);
    const present = Math.min(mass, 1) >= format.thresholds[row];
    const likeliest = values[of_au.indexOf(Math.max(...of_au))];
    answer.value.push(scale === "occurrence" ? Number(present) : likeliest);
    answer.expected.push(fourDigits(mean));
    answer.probability.push(fourDigits(Math.min(mass, 1)));
    answer.present.push(present);
    answer.low.push(quantile(of_au, values, band[0]));
    answer.high.push(quantile(of_au, values, band[1]));
  });
  return answer;
}

function quantile(shares, values, level) {
  let sum = 0;
  const place = shares.findIndex((share) => (sum += share) >= level - 1e-6);
  return values[Math.max(place, 0)];
}

/** Sentences on what one format finds and another does not; `rules` as `contradiction_rules` in Python writes them. */
export function contradictions(answers, rules) {
  const absent = (answer, place) => answer.value[place] === 0 && !answer.present[place];
  return rules
    .filter(
      ({ present_in, present, absent_in, absent: places }) =>
        answers[present_in].present[present] && places.every((place) => absent(answers[absent_in], place)),
    )
    .map(({ text }) => text);
}
