// Cosine similarity, and principal components of a few vectors. Pure.

/** Cosines of every pair: n rows of n. */
export function similarities(vectors) {
  const unit = vectors.map((vector) => {
    const length = Math.hypot(...vector) || 1;
    return vector.map((value) => value / length);
  });
  return unit.map((a) => unit.map((b) => dot(a, b)));
}

/**
 * The first two principal components: n points [x, y], and the shares of the variance they keep.
 *
 * From the Gram matrix of the centred vectors, since there are fewer vectors than dimensions: its
 * eigenvectors, scaled by the roots of the eigenvalues, are the projections. The sign of each axis
 * is chosen so that its largest coordinate is positive.
 */
export function principal(vectors) {
  const middle = vectors[0].map((_, axis) => mean(vectors.map((vector) => vector[axis])));
  const centred = vectors.map((vector) => vector.map((value, axis) => value - middle[axis]));
  const gram = centred.map((a) => centred.map((b) => dot(a, b)));
  const { values, rows } = eigen(gram);
  const total = values.reduce((sum, value) => sum + Math.max(value, 0), 0);
  const order = values.map((_, index) => index).sort((a, b) => values[b] - values[a]);
  const axes = [0, 1].map((rank) => {
    const index = order[rank];
    const value = index === undefined ? 0 : Math.max(values[index], 0);
    const raw = vectors.map((_, row) => (index === undefined ? 0 : rows[row][index] * Math.sqrt(value)));
    const largest = raw.reduce((best, one) => (Math.abs(one) > Math.abs(best) + 1e-12 ? one : best), 0);
    return { points: largest < 0 ? raw.map((one) => -one) : raw, share: total ? value / total : 0 };
  });
  return {
    points: vectors.map((_, row) => axes.map((axis) => axis.points[row])),
    shares: axes.map((axis) => axis.share),
  };
}

/**
 * Eigenvalues of a symmetric matrix, and its eigenvectors as columns of `rows`: Jacobi's cyclic
 * rotations (Golub & Van Loan, Matrix Computations, 8.5).
 */
function eigen(matrix) {
  const size = matrix.length;
  const a = matrix.map((row) => [...row]);
  const rows = a.map((_, i) => a.map((_, j) => (i === j ? 1 : 0)));
  const scale = Math.max(...a.flat().map(Math.abs), 1e-300);
  for (let sweep = 0; sweep < 50; sweep++) {
    let largest = 0;
    for (let p = 0; p < size; p++) {
      for (let q = p + 1; q < size; q++) {
        largest = Math.max(largest, Math.abs(a[p][q]));
        if (Math.abs(a[p][q]) > 1e-15 * scale) rotate(a, rows, p, q);
      }
    }
    if (largest <= 1e-12 * scale) break;
  }
  return { values: a.map((row, i) => row[i]), rows };
}

function rotate(a, rows, p, q) {
  const theta = (a[q][q] - a[p][p]) / (2 * a[p][q]);
  const t = (theta < 0 ? -1 : 1) / (Math.abs(theta) + Math.hypot(theta, 1));
  const c = 1 / Math.hypot(t, 1);
  const sine = t * c;
  for (let k = 0; k < a.length; k++) [a[k][p], a[k][q]] = [c * a[k][p] - sine * a[k][q], sine * a[k][p] + c * a[k][q]];
  for (let k = 0; k < a.length; k++) [a[p][k], a[q][k]] = [c * a[p][k] - sine * a[q][k], sine * a[p][k] + c * a[q][k]];
  for (const row of rows) [row[p], row[q]] = [c * row[p] - sine * row[q], sine * row[p] + c * row[q]];
}

const dot = (a, b) => a.reduce((sum, value, index) => sum + value * b[index], 0);
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
