//! Where transformers' arithmetic and the model's intent differ: the position of a patch.
//!
//! A patch's row and column are meant to be its position. transformers finds them by sorting
//! fractions i/n into the boundaries k/n, both in 32-bit floats, and on some grids a fraction lies
//! just below its own boundary. The published grids, 32 and 27, are exact.

/// How many of a side's `grid` positions transformers rounds to another.
pub(super) fn moved_by_transformers(grid: usize) -> usize {
    let boundaries = boundaries(grid);
    let step = 1.0 / grid as f32;
    let bucket = |i: usize| {
        let fraction = (i as f32 * step).min(1.0 - 1e-6);
        boundaries
            .iter()
            .filter(|&&boundary| boundary <= fraction)
            .count()
    };
    (0..grid).filter(|&i| bucket(i) != i).count()
}

/// `arange(1 / grid, 1, 1 / grid)` as torch computes it: eight at a time, counted in f64 from a
/// first value that is rounded to f32.
fn boundaries(grid: usize) -> Vec<f32> {
    const LANES: usize = 8;
    let step = 1.0 / grid as f64;
    let count = ((1.0 - step) / step).ceil() as usize;
    let at = |i: usize| step + step * i as f64;
    let vector = |i: usize| f64::from(at(i / LANES * LANES) as f32) + (i % LANES) as f64 * step;
    (0..count)
        .map(|i| {
            if i < count / LANES * LANES {
                vector(i) as f32
            } else {
                at(i) as f32
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As torch 2.15 computes them.
    #[test]
    fn grids_on_which_transformers_rounds_are_known() {
        let moved: Vec<usize> = (1..64)
            .filter(|&grid| moved_by_transformers(grid) > 0)
            .collect();
        assert_eq!(
            moved,
            [
                19, 25, 29, 31, 38, 40, 41, 43, 47, 49, 50, 54, 55, 58, 59, 61, 62
            ]
        );
    }
}
