//! The arithmetic of both towers: matrices, norms, attention. f32 throughout.

use std::num::NonZero;
use std::ops::Range;
use std::thread;

/// A weight matrix, [rows = out, columns = in] row-major.
#[derive(Debug, Clone)]
pub(super) struct Matrix {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) values: Vec<f32>,
}

impl Matrix {
    pub(super) fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.columns..(row + 1) * self.columns]
    }

    /// x · Wᵀ for x of [n, in]; returns [n, out].
    pub(super) fn apply(&self, x: &[f32]) -> Vec<f32> {
        let mut y = vec![0.0; x.len() / self.columns * self.rows];
        in_row_groups(&mut y, self.rows, self.columns, |first, y| {
            let x = &x[first * self.columns..][..y.len() / self.rows * self.columns];
            // Output columns outside, so each weight row is read once for the whole group while the
            // group's inputs stay in cache.
            for (out, weight) in self.values.chunks_exact(self.columns).enumerate() {
                for (x, y) in x
                    .chunks_exact(self.columns)
                    .zip(y.chunks_exact_mut(self.rows))
                {
                    y[out] = dot(x, weight);
                }
            }
        });
        y
    }
}

/// A matrix and a bias.
#[derive(Debug)]
pub(super) struct Linear {
    pub(super) weight: Matrix,
    pub(super) bias: Vec<f32>,
}

impl Linear {
    /// x · Wᵀ + b.
    pub(super) fn apply(&self, x: &[f32]) -> Vec<f32> {
        let mut y = self.weight.apply(x);
        y.chunks_exact_mut(self.bias.len())
            .for_each(|row| add(row, &self.bias));
        y
    }
}

/// Normalises each row to mean 0 and variance 1, then scales and shifts it.
#[derive(Debug)]
pub(super) struct LayerNorm {
    pub(super) weight: Vec<f32>,
    pub(super) bias: Vec<f32>,
    pub(super) eps: f32,
}

impl LayerNorm {
    pub(super) fn apply(&self, x: &[f32]) -> Vec<f32> {
        let width = self.weight.len();
        let mut y = x.to_vec();
        for row in y.chunks_exact_mut(width) {
            let mean = row.iter().sum::<f32>() / width as f32;
            let variance = row.iter().map(|v| (v - mean) * (v - mean)).sum::<f32>() / width as f32;
            let scale = (variance + self.eps).sqrt().recip();
            for (value, (weight, bias)) in row.iter_mut().zip(self.weight.iter().zip(&self.bias)) {
                *value = (*value - mean) * scale * weight + bias;
            }
        }
        y
    }
}

/// Scales each row to mean square 1, then by a weight.
#[derive(Debug)]
pub(super) struct RmsNorm {
    pub(super) weight: Vec<f32>,
    pub(super) eps: f32,
}

impl RmsNorm {
    pub(super) fn apply(&self, x: &[f32]) -> Vec<f32> {
        let width = self.weight.len();
        let mut y = x.to_vec();
        for row in y.chunks_exact_mut(width) {
            let scale = (dot(row, row) / width as f32 + self.eps).sqrt().recip();
            row.iter_mut()
                .zip(&self.weight)
                .for_each(|(value, weight)| *value *= scale * weight);
        }
        y
    }
}

/// One layer's attention.
pub(super) struct Attention {
    pub(super) heads: usize,
    /// Divides `heads`; `heads / kv_heads` query heads share one key and value head.
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    /// Whether a query attends only to keys up to its own position.
    pub(super) causal: bool,
}

impl Attention {
    /// Queries [n, heads · d], keys and values [m, kv_heads · d], m ≥ n; queries are the last n of
    /// the m positions. Returns [n, heads · d].
    pub(super) fn apply(&self, queries: &[f32], keys: &[f32], values: &[f32]) -> Vec<f32> {
        let (d, width, kv_width) = (
            self.head_dim,
            self.heads * self.head_dim,
            self.kv_heads * self.head_dim,
        );
        let (n, m) = (queries.len() / width, keys.len() / kv_width);
        let scale = (d as f32).sqrt().recip();
        let mut out = vec![0.0; queries.len()];
        in_row_groups(&mut out, width, m, |first, out| {
            for (row, out) in out.chunks_exact_mut(width).enumerate() {
                let position = first + row;
                let seen = if self.causal { m - n + position + 1 } else { m };
                for head in 0..self.heads {
                    let query = &queries[position * width + head * d..][..d];
                    let from = head / (self.heads / self.kv_heads) * d;
                    let of = |rows: &'_ [f32], at: usize| -> Range<usize> {
                        debug_assert!(at * kv_width < rows.len());
                        at * kv_width + from..at * kv_width + from + d
                    };
                    let mut weights: Vec<f32> = (0..seen)
                        .map(|at| dot(query, &keys[of(keys, at)]) * scale)
                        .collect();
                    softmax(&mut weights);
                    let out = &mut out[head * d..(head + 1) * d];
                    for (at, weight) in weights.iter().enumerate() {
                        out.iter_mut()
                            .zip(&values[of(values, at)])
                            .for_each(|(out, value)| *out += weight * value);
                    }
                }
            }
        });
        out
    }
}

/// x += y.
pub(super) fn add(x: &mut [f32], y: &[f32]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

/// x · sigmoid(x).
pub(super) fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}

/// The tanh form of the Gaussian error linear unit.
pub(super) fn gelu_tanh(x: f32) -> f32 {
    let inner = (2.0 / std::f32::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
    0.5 * x * (1.0 + inner.tanh())
}

/// exp(x) over its sum, computed below the maximum so that nothing overflows.
fn softmax(x: &mut [f32]) {
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    x.iter_mut().for_each(|x| *x = (*x - max).exp());
    let sum: f32 = x.iter().sum();
    x.iter_mut().for_each(|x| *x /= sum);
}

/// Partial sums in sixteen lanes: vectorised, and closer to the exact sum than one running total.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a, a_rest) = a.as_chunks::<16>();
    let (b, b_rest) = b.as_chunks::<16>();
    let mut lanes = [0.0f32; 16];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..16 {
            lanes[lane] += a[lane] * b[lane];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    lanes.iter().sum::<f32>() + rest
}

/// Rows handled together: their inputs stay in cache while weights stream past.
const GROUP: usize = 32;

/// Multiply-adds below which starting threads costs more than it saves.
const THREADED: usize = 1 << 20;

/// Fills `y`, rows of `width`, in groups of rows spread over all cores; `fill` gets a group's first
/// row. `inner` is the work for one value of `y`, in multiply-adds.
fn in_row_groups(
    y: &mut [f32],
    width: usize,
    inner: usize,
    fill: impl Fn(usize, &mut [f32]) + Sync,
) {
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let rows = y.len() / width;
    let threads = if y.len() * inner < THREADED {
        1
    } else {
        cores.min(rows)
    };
    let share = rows.div_ceil(threads.max(1)).max(1);
    thread::scope(|scope| {
        for (part, y) in y.chunks_mut(share * width).enumerate() {
            let fill = &fill;
            let mut work = move || {
                y.chunks_mut(GROUP * width)
                    .enumerate()
                    .for_each(|(group, y)| fill(part * share + group * GROUP, y))
            };
            if threads > 1 {
                scope.spawn(work);
            } else {
                work();
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_matrix_multiplies_as_the_definition_says() {
        // Sizes on both sides of the group and the lane width, and large enough for threads.
        for (n, rows, columns) in [(1, 1, 1), (3, 5, 17), (33, 40, 16), (70, 300, 100)] {
            let noise = |seed: usize, len: usize| -> Vec<f32> {
                (0..len)
                    .map(|i| ((i * 7919 + seed) % 101) as f32 / 50.0 - 1.0)
                    .collect()
            };
            let (x, matrix) = (
                noise(1, n * columns),
                Matrix {
                    rows,
                    columns,
                    values: noise(2, rows * columns),
                },
            );
            let y = matrix.apply(&x);
            for (row, out) in (0..n).flat_map(|row| (0..rows).map(move |out| (row, out))) {
                let expected: f64 = (0..columns)
                    .map(|i| f64::from(x[row * columns + i]) * f64::from(matrix.row(out)[i]))
                    .sum();
                assert!(
                    (f64::from(y[row * rows + out]) - expected).abs() < 1e-4,
                    "{n}x{columns} by {rows}, at {row}, {out}"
                );
            }
        }
    }

    #[test]
    fn a_causal_query_attends_to_itself_and_what_came_before() {
        let attention = Attention {
            heads: 2,
            kv_heads: 1,
            head_dim: 1,
            causal: true,
        };
        // Equal keys: each query takes the mean of the values it sees.
        let out = attention.apply(&[1.0, -1.0, 1.0, -1.0], &[0.0; 3], &[3.0, 5.0, 10.0]);
        assert_eq!(out, [4.0, 4.0, 6.0, 6.0]);
    }

    #[test]
    fn query_heads_share_key_heads_in_runs() {
        let attention = Attention {
            heads: 4,
            kv_heads: 2,
            head_dim: 1,
            causal: false,
        };
        assert_eq!(
            attention.apply(&[1.0; 4], &[0.0, 0.0], &[7.0, 8.0]),
            [7.0, 7.0, 8.0, 8.0]
        );
    }

    #[test]
    fn norms_give_unit_rows() {
        let layer = LayerNorm {
            weight: vec![1.0; 4],
            bias: vec![0.5; 4],
            eps: 0.0,
        };
        let expected = [-1.3416407, -0.4472136, 0.4472136, 1.3416407].map(|v| v + 0.5);
        assert!(
            layer
                .apply(&[1.0, 2.0, 3.0, 4.0])
                .iter()
                .zip(expected)
                .all(|(a, b)| (a - b).abs() < 1e-6)
        );
        let rms = RmsNorm {
            weight: vec![2.0; 2],
            eps: 0.0,
        };
        assert_eq!(rms.apply(&[3.0, -3.0]), [2.0, -2.0]);
    }
}
