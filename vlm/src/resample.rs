//! Lanczos resampling of 8-bit RGB, bit for bit as in Pillow up to 12, which models were trained
//! and scored with.
//!
//! Two passes, horizontal first (except for images over 100 times as tall as wide), rounded to u8
//! in between; weights in 10.22 fixed point. A pass that changes nothing is skipped. Pillow 13 runs
//! the vertical pass first on more shapes, which changes bytes; the order here stays.

use std::f64::consts::PI;

/// Lanczos-3: the kernel spans three source pixels (scaled when shrinking) to each side.
const SUPPORT: f64 = 3.0;
/// Fraction bits of a weight.
const PRECISION: u32 = 32 - 8 - 2;
/// One half, so that the shift rounds to nearest.
const HALF: i32 = 1 << (PRECISION - 1);

/// Width and height in pixels, each 1 or more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    /// Pixels from left to right.
    pub(crate) width: usize,
    /// Pixels from top to bottom.
    pub(crate) height: usize,
}

/// Resamples `pixels` ([height, width, RGB] of `from`) to `to`.
///
/// # Panics
/// When `pixels` is not `from` in size, or a side is zero.
pub(crate) fn lanczos(pixels: &[u8], from: Size, to: Size) -> Vec<u8> {
    assert_eq!(
        pixels.len(),
        from.width * from.height * 3,
        "pixels fill their size"
    );
    assert!(
        to.width > 0 && to.height > 0 && !pixels.is_empty(),
        "sizes are 1 or more"
    );
    match (from.width == to.width, from.height == to.height) {
        (true, true) => pixels.to_vec(),
        (false, true) => horizontal(pixels, from, to.width),
        (true, false) => vertical(pixels, from, to.height),
        // Pillow's own exception, to save work on very tall images that are shrunk in height.
        (false, false) if from.height > 100 * from.width && to.height < from.height => horizontal(
            &vertical(pixels, from, to.height),
            Size {
                width: from.width,
                height: to.height,
            },
            to.width,
        ),
        (false, false) => vertical(
            &horizontal(pixels, from, to.width),
            Size {
                width: to.width,
                height: from.height,
            },
            to.height,
        ),
    }
}

/// The source pixels that make one output pixel, and their weights.
struct Taps {
    from: usize,
    weights: Vec<i32>,
}

/// One [`Taps`] for each of `to` output positions along an axis of `from` pixels.
fn taps(from: usize, to: usize) -> Vec<Taps> {
    let scale = from as f64 / to as f64;
    let filter_scale = scale.max(1.0);
    let support = SUPPORT * filter_scale;
    let inverse = 1.0 / filter_scale;
    let tap = |i: usize| {
        let centre = (i as f64 + 0.5) * scale;
        let first = (centre - support + 0.5).max(0.0) as usize;
        let end = ((centre + support + 0.5) as usize).min(from);
        let weights: Vec<f64> = (first..end)
            .map(|x| kernel((x as f64 - centre + 0.5) * inverse))
            .collect();
        let sum: f64 = weights.iter().sum();
        Taps {
            from: first,
            weights: weights.iter().map(|weight| fixed(weight / sum)).collect(),
        }
    };
    (0..to).map(tap).collect()
}

/// The Lanczos-3 kernel.
fn kernel(t: f64) -> f64 {
    if (-SUPPORT..SUPPORT).contains(&t) {
        sinc(t) * sinc(t / SUPPORT)
    } else {
        0.0
    }
}

fn sinc(t: f64) -> f64 {
    if t == 0.0 {
        1.0
    } else {
        (t * PI).sin() / (t * PI)
    }
}

/// A weight in fixed point; halves round away from zero, because the cast truncates.
fn fixed(weight: f64) -> i32 {
    (weight * f64::from(1 << PRECISION) + 0.5_f64.copysign(weight)) as i32
}

/// A weighted sum in fixed point, which already has one half added, as a sample.
fn to_u8(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

fn horizontal(pixels: &[u8], from: Size, width: usize) -> Vec<u8> {
    let taps = taps(from.width, width);
    let mut out = Vec::with_capacity(width * from.height * 3);
    for row in pixels.chunks_exact(from.width * 3) {
        for Taps { from, weights } in &taps {
            let mut sum = [HALF; 3];
            for (pixel, weight) in row[from * 3..].chunks_exact(3).zip(weights) {
                for (sum, &sample) in sum.iter_mut().zip(pixel) {
                    *sum += i32::from(sample) * weight;
                }
            }
            out.extend(sum.map(to_u8));
        }
    }
    out
}

fn vertical(pixels: &[u8], from: Size, height: usize) -> Vec<u8> {
    let stride = from.width * 3;
    let mut out = Vec::with_capacity(stride * height);
    let mut sums = vec![HALF; stride];
    for Taps { from, weights } in taps(from.height, height) {
        sums.fill(HALF);
        // Row by row rather than column by column: neighbours in memory, so the compiler vectorises
        // it.
        for (row, weight) in pixels[from * stride..].chunks_exact(stride).zip(weights) {
            for (sum, &sample) in sums.iter_mut().zip(row) {
                *sum += i32::from(sample) * weight;
            }
        }
        out.extend(sums.iter().map(|&sum| to_u8(sum)));
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn weights_sum_to_one_and_are_symmetric() {
        for (from, to) in [(1, 7), (7, 1), (320, 64), (64, 320), (100, 99), (5000, 3)] {
            let taps = taps(from, to);
            for (i, tap) in taps.iter().enumerate() {
                let sum: i32 = tap.weights.iter().sum();
                assert!(
                    (sum - (1 << PRECISION)).abs() <= tap.weights.len() as i32,
                    "{from} to {to}: {sum} at {i}"
                );
                assert!(tap.from + tap.weights.len() <= from);
            }
            let mirrored: Vec<i32> = taps[to - 1].weights.iter().rev().copied().collect();
            assert!(
                taps[0]
                    .weights
                    .iter()
                    .zip(&mirrored)
                    .all(|(a, b)| (a - b).abs() <= 1),
                "{from} to {to}"
            );
        }
    }

    #[test]
    fn overshoot_is_clamped_not_wrapped() {
        let edge: Vec<u8> = [[0; 3 * 8], [255; 3 * 8]].concat();
        let out = lanczos(
            &edge,
            Size {
                width: 16,
                height: 1,
            },
            Size {
                width: 64,
                height: 1,
            },
        );
        assert!(
            out[..96].iter().all(|&sample| sample < 128)
                && out[96..].iter().all(|&sample| sample >= 128),
            "{out:?}"
        );
    }

    #[test]
    fn very_tall_images_are_resampled_vertically_first() {
        let (from, to) = (
            Size {
                width: 2,
                height: 201,
            },
            Size {
                width: 9,
                height: 20,
            },
        );
        let pixels: Vec<u8> = (0..from.width * from.height * 3)
            .map(|i| (i * i / 7) as u8)
            .collect();
        let height_first = horizontal(
            &vertical(&pixels, from, to.height),
            Size {
                width: 2,
                height: 20,
            },
            to.width,
        );
        assert_eq!(lanczos(&pixels, from, to), height_first);
        let less_tall = Size {
            width: 2,
            height: 200,
        };
        let width_first = vertical(
            &horizontal(&pixels[..1200], less_tall, to.width),
            Size {
                width: 9,
                height: 200,
            },
            to.height,
        );
        assert_eq!(lanczos(&pixels[..1200], less_tall, to), width_first);
    }

    fn side() -> impl Strategy<Value = usize> {
        prop_oneof![1usize..24, 1usize..200]
    }

    proptest! {
        #[test]
        fn a_flat_image_stays_flat(w in side(), h in side(), to_w in side(), to_h in side(), level: u8) {
            let out = lanczos(&vec![level; w * h * 3], Size { width: w, height: h }, Size { width: to_w, height: to_h });
            prop_assert_eq!(out, vec![level; to_w * to_h * 3]);
        }

        #[test]
        fn the_same_size_is_the_same_image(w in 1usize..24, h in 1usize..24, seed: u8) {
            let pixels: Vec<u8> = (0..w * h * 3).map(|i| (i as u8).wrapping_mul(31) ^ seed).collect();
            let size = Size { width: w, height: h };
            prop_assert_eq!(lanczos(&pixels, size, size), pixels);
        }
    }
}
