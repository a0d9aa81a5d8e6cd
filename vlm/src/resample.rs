//! Lanczos resampling of 8-bit RGB, to the bit as Pillow up to 12 does it: the pictures models were trained and scored with.
//!
//! Two passes, horizontal first, rounded to u8 in between; weights in 10.22 fixed point. A pass that changes nothing is skipped.
//! Pillow 13 runs the vertical pass first on some shapes, which changes bytes; the order here stays.

use std::f64::consts::PI;

/// Lanczos-3: the kernel spans three source pixels (scaled when shrinking) to each side.
const SUPPORT: f64 = 3.0;
/// Fraction bits of a weight.
const PRECISION: u32 = 32 - 8 - 2;
/// One half, so that the shift rounds to nearest.
const HALF: i32 = 1 << (PRECISION - 1);

/// Width and height in pixels, each 1 or more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Pixels from left to right.
    pub width: usize,
    /// Pixels from top to bottom.
    pub height: usize,
}

/// Resamples `pixels` ([height, width, RGB] of `from`) to `to`.
///
/// # Panics
/// When `pixels` is not `from` in size, or a side is zero.
pub fn lanczos(pixels: &[u8], from: Size, to: Size) -> Vec<u8> {
    assert_eq!(pixels.len(), from.width * from.height * 3, "pixels fill their size");
    assert!(to.width > 0 && to.height > 0 && !pixels.is_empty(), "sizes are 1 or more");
    match (from.width == to.width, from.height == to.height) {
        (true, true) => pixels.to_vec(),
        (false, true) => horizontal(pixels, from, to.width),
        (true, false) => vertical(pixels, from, to.height),
        (false, false) => vertical(&horizontal(pixels, from, to.width), Size { width: to.width, height: from.height }, to.height),
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
        let weights: Vec<f64> = (first..end).map(|x| kernel((x as f64 - centre + 0.5) * inverse)).collect();
        let sum: f64 = weights.iter().sum();
        Taps { from: first, weights: weights.iter().map(|weight| fixed(weight / sum)).collect() }
    };
    (0..to).map(tap).collect()
}

fn kernel(t: f64) -> f64 {
    if (-SUPPORT..SUPPORT).contains(&t) { sinc(t) * sinc(t / SUPPORT) } else { 0.0 }
}

fn sinc(t: f64) -> f64 {
    if t == 0.0 { 1.0 } else { (t * PI).sin() / (t * PI) }
}

/// Halves round away from zero; the cast truncates.
fn fixed(weight: f64) -> i32 {
    (weight * f64::from(1 << PRECISION) + 0.5_f64.copysign(weight)) as i32
}

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
        // Row by row rather than column by column: neighbours in memory, so the compiler vectorises it.
        for (row, weight) in pixels[from * stride..].chunks_exact(stride).zip(weights) {
            for (sum, &sample) in sums.iter_mut().zip(row) {
                *sum += i32::from(sample) * weight;
            }
        }
        out.extend(sums.iter().map(|&sum| to_u8(sum)));
    }
    out
}
