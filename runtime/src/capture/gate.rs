//! The cheap filter before the model: which frames are worth asking about. Pure; time is an
//! argument.
//!
//! A frame is compared with the last *admitted* one, not with the one before it, so that slow
//! change adds up until it counts.

use std::ops::Range;
use std::time::Duration;

use firmware_config::agent;

/// Sides of a thumbnail in cells; the aspect ratio does not matter to a comparison with itself.
const COLUMNS: usize = 96;
const ROWS: usize = 72;

/// Grey levels (of 255) that a cell may differ by and still count as the same: sensor noise and
/// compression.
const NOISE_LEVELS: u8 = 18;

/// A small grey version of a frame: the mean luma of each cell, [72, 96] row-major.
#[derive(Clone, PartialEq, Eq)]
pub struct Thumbnail(Vec<u8>);

impl Thumbnail {
    /// Shrinks an image of `pixels`, [height, width, RGB] row-major, in one pass over them.
    ///
    /// A cell is the mean of the pixels it covers, which takes the noise out. Along each side, the
    /// borders between cells are rounded to whole pixels, halves up, so every pixel counts once.
    /// Along a side with fewer pixels than cells, a cell covers the one pixel its centre lies in.
    ///
    /// # Errors
    /// When a side is zero, or `pixels` is not `width * height * 3` long.
    pub fn of_rgb(width: u32, height: u32, pixels: &[u8]) -> Result<Self, ThumbnailError> {
        if pixels.is_empty() || pixels.len() as u64 != rgb_bytes(width, height) {
            return Err(ThumbnailError {
                width,
                height,
                bytes: pixels.len(),
            });
        }
        let (width, height) = (width as usize, height as usize);
        let stride = width * 3;
        let mut cells = Vec::with_capacity(COLUMNS * ROWS);
        // Sums of the samples above each other in a row of cells. No overflow: that would take a
        // row of cells 16 million pixels high, of an image of at most 64 million.
        let mut column_sums = vec![0_u32; stride];
        for row in 0..ROWS {
            let rows = covered(row, ROWS, height);
            // Whole rows of samples first: the compiler vectorises this addition.
            column_sums.fill(0);
            for samples in pixels[rows.start * stride..rows.end * stride].chunks_exact(stride) {
                for (sum, sample) in column_sums.iter_mut().zip(samples) {
                    *sum += u32::from(*sample);
                }
            }
            for column in 0..COLUMNS {
                let columns = covered(column, COLUMNS, width);
                let sums = column_sums[columns.start * 3..columns.end * 3]
                    .chunks_exact(3)
                    .fold([0_u64; 3], |[r, g, b], sums| {
                        [
                            r + u64::from(sums[0]),
                            g + u64::from(sums[1]),
                            b + u64::from(sums[2]),
                        ]
                    });
                cells.push(mean_luma(sums, (rows.len() * columns.len()) as u64));
            }
        }
        Ok(Thumbnail(cells))
    }

    /// Share of cells, 0..=1, that differ by more than noise.
    pub fn changed_share(&self, other: &Thumbnail) -> f64 {
        let changed = self
            .0
            .iter()
            .zip(&other.0)
            .filter(|(a, b)| a.abs_diff(**b) > NOISE_LEVELS)
            .count();
        changed as f64 / self.0.len() as f64
    }
}

impl std::fmt::Debug for Thumbnail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Thumbnail({COLUMNS}x{ROWS})")
    }
}

/// The pixels that cell `cell` of `cells` covers along a side of `pixels`; at least one.
fn covered(cell: usize, cells: usize, pixels: usize) -> Range<usize> {
    if pixels < cells {
        let centre = (2 * cell + 1) * pixels / (2 * cells);
        return centre..centre + 1;
    }
    let border = |before: usize| (2 * before * pixels + cells) / (2 * cells);
    border(cell)..border(cell + 1)
}

/// BT.601 luma of the mean of `count` RGB pixels, rounded to nearest, halves up.
fn mean_luma([r, g, b]: [u64; 3], count: u64) -> u8 {
    ((r * 299 + g * 587 + b * 114 + 500 * count) / (1000 * count)) as u8
}

fn rgb_bytes(width: u32, height: u32) -> u64 {
    (u64::from(width) * u64::from(height)).saturating_mul(3)
}

/// The number of bytes does not match the sides of the image.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
#[error("frame of {width}x{height} RGB: expected both sides above zero and {} bytes, got {bytes}", rgb_bytes(*width, *height))]
pub struct ThumbnailError {
    width: u32,
    height: u32,
    bytes: usize,
}

/// What the gate decides about a frame.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Decision {
    /// The model is asked about it.
    Admit(AdmitReason),
    /// The model is not asked about it.
    Skip(SkipReason),
}

/// Why a frame is admitted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum AdmitReason {
    /// No frame was admitted before.
    First,
    /// Enough of it changed.
    Motion {
        /// Share of changed cells, 0..=1.
        share: f64,
    },
    /// The scene is unchanged, but the last answer is old.
    MaxAge,
    /// The gate is off: `motion = 0`.
    Ungated,
}

/// Why a frame is skipped.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum SkipReason {
    /// It looks like the last admitted frame.
    Unchanged {
        /// Share of changed cells, 0..=1, below the configured one.
        share: f64,
    },
}

/// One camera's gate.
#[derive(Debug)]
pub struct Gate {
    settings: agent::Gate,
    admitted: Option<(Thumbnail, Duration)>,
}

impl Gate {
    /// A gate that has admitted no frame yet.
    pub fn new(settings: agent::Gate) -> Self {
        Gate {
            settings,
            admitted: None,
        }
    }

    /// Remembers the frame that was admitted at `now`, a time as in [`Gate::decide`].
    pub fn admitted(&mut self, thumbnail: Thumbnail, now: Duration) {
        self.admitted = Some((thumbnail, now));
    }

    /// Decides about a frame seen at `now`: monotonic time since any fixed moment.
    pub fn decide(&self, thumbnail: &Thumbnail, now: Duration) -> Decision {
        let Some((last, at)) = &self.admitted else {
            return Decision::Admit(AdmitReason::First);
        };
        if self.settings.motion <= 0.0 {
            return Decision::Admit(AdmitReason::Ungated);
        }
        let share = thumbnail.changed_share(last);
        if share >= self.settings.motion {
            Decision::Admit(AdmitReason::Motion { share })
        } else if now.saturating_sub(*at) >= self.settings.max_age {
            Decision::Admit(AdmitReason::MaxAge)
        } else {
            Decision::Skip(SkipReason::Unchanged { share })
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn flat(level: u8) -> Thumbnail {
        Thumbnail(vec![level; COLUMNS * ROWS])
    }

    /// A black thumbnail with `bright` white cells.
    fn lit(bright: usize) -> Thumbnail {
        let mut thumbnail = flat(0);
        thumbnail.0[..bright].fill(255);
        thumbnail
    }

    impl Gate {
        /// Decides, and remembers the frame if it is admitted.
        fn admit(&mut self, thumbnail: Thumbnail, now: Duration) -> Decision {
            let decision = self.decide(&thumbnail, now);
            if let Decision::Admit(_) = decision {
                self.admitted(thumbnail, now);
            }
            decision
        }
    }

    fn gate(motion: f64, max_age_secs: u64) -> Gate {
        Gate::new(agent::Gate {
            motion,
            max_age: Duration::from_secs(max_age_secs),
        })
    }

    #[test]
    fn admits_first_motion_and_age_and_skips_the_rest() {
        let mut gate = gate(0.01, 30);
        let at = Duration::from_secs;
        assert_eq!(
            gate.admit(lit(0), at(0)),
            Decision::Admit(AdmitReason::First)
        );
        assert_eq!(
            gate.admit(lit(10), at(1)),
            Decision::Skip(SkipReason::Unchanged {
                share: 10.0 / 6912.0
            })
        );
        assert_eq!(
            gate.admit(lit(700), at(2)),
            Decision::Admit(AdmitReason::Motion {
                share: 700.0 / 6912.0
            })
        );
        assert_eq!(
            gate.admit(lit(700), at(31)),
            Decision::Skip(SkipReason::Unchanged { share: 0.0 })
        );
        assert_eq!(
            gate.admit(lit(700), at(32)),
            Decision::Admit(AdmitReason::MaxAge)
        );
    }

    #[test]
    fn slow_change_adds_up() {
        let mut gate = gate(0.1, 3600);
        let admitted = (0..=100_u64).filter(|i| {
            matches!(
                gate.admit(lit(*i as usize * 69), Duration::from_secs(*i)),
                Decision::Admit(_)
            )
        });
        assert_eq!(admitted.count(), 10);
    }

    #[test]
    fn a_gate_without_a_threshold_admits_every_frame() {
        let mut gate = gate(0.0, 30);
        gate.admit(flat(0), Duration::ZERO);
        assert_eq!(
            gate.admit(flat(0), Duration::ZERO),
            Decision::Admit(AdmitReason::Ungated)
        );
    }

    #[test]
    fn noise_is_no_change_and_a_person_is() {
        let (width, height) = (320_u32, 240_u32);
        let scene = |noise: u8, person: bool| {
            let pixels: Vec<u8> = (0..width * height)
                .flat_map(|i| {
                    let (x, y) = (i % width, i / width);
                    let dark = person && (100..140).contains(&x) && (80..200).contains(&y);
                    [if dark {
                        30
                    } else {
                        120 + (i.wrapping_mul(2_654_435_761) >> 24) as u8 % noise.max(1)
                    }; 3]
                })
                .collect();
            Thumbnail::of_rgb(width, height, &pixels).expect("the pixels match the sides")
        };
        assert_eq!(scene(1, false).changed_share(&scene(12, false)), 0.0);
        assert!(
            (scene(1, false).changed_share(&scene(12, true)) - 40.0 * 120.0 / (320.0 * 240.0))
                .abs()
                < 0.01
        );
    }

    #[test]
    fn a_cell_is_the_mean_of_the_pixels_it_covers() {
        assert_eq!(covered(95, 96, 480), 475..480);
        // 270 / 72 is 3.75: borders at 3.75, 7.5 (halves up), 11.25 and 15.
        let rows = [0, 1, 2, 3].map(|row| covered(row, 72, 270));
        assert_eq!(rows, [0..4, 4..8, 8..11, 11..15]);
        // 4 cells over 2 pixels, and over 3: the pixel that the cell's centre lies in.
        assert_eq!(
            [0, 1, 2, 3].map(|cell| covered(cell, 4, 2).start),
            [0, 0, 1, 1]
        );
        assert_eq!(
            [0, 1, 2, 3].map(|cell| covered(cell, 4, 3).start),
            [0, 1, 1, 2]
        );

        assert_eq!(mean_luma([10, 10, 10], 4), 3, "2.5 is rounded up");
        assert_eq!(mean_luma([9, 9, 9], 4), 2, "2.25 is rounded down");
        assert_eq!(mean_luma([255, 0, 0], 1), 76);
        assert_eq!(mean_luma([0, 255, 0], 1), 150);
        assert_eq!(mean_luma([0, 0, 255], 1), 29);
    }

    /// A frame in which neighbouring pixels differ much, and means differ from cell to cell.
    fn textured(width: u32, height: u32) -> Thumbnail {
        let mut pixels = Vec::new();
        for (y, x) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))) {
            let ramp = x * 160 / width + y * 64 / height;
            pixels.extend([7, 11, 13].map(|c| (ramp + ((x * c) ^ (y * 5)) % 32) as u8));
        }
        Thumbnail::of_rgb(width, height, &pixels).expect("the pixels match the sides")
    }

    /// Values that fast_image_resize 6.1.0 computes with its box filter, every 863rd cell.
    #[test]
    fn thumbnails_are_those_of_a_resampling_library() {
        let golden = [
            (480, 270, [13, 182, 191, 194, 201, 206, 213, 220, 226]),
            (640, 480, [16, 182, 187, 194, 200, 207, 213, 220, 225]),
            (1000, 700, [15, 181, 187, 194, 200, 206, 213, 218, 225]),
            (97, 71, [0, 173, 175, 188, 197, 200, 214, 213, 225]),
            (96, 72, [0, 190, 193, 201, 203, 203, 223, 216, 222]),
            (50, 40, [0, 173, 193, 197, 198, 213, 217, 216, 226]),
            (7, 400, [12, 159, 164, 178, 183, 192, 199, 208, 215]),
            (1, 1, [0; 9]),
        ];
        for (width, height, expected) in golden {
            let cells: Vec<u8> = textured(width, height).0.into_iter().step_by(863).collect();
            assert_eq!(cells.len(), expected.len());
            assert!(
                cells
                    .iter()
                    .zip(expected)
                    .all(|(cell, expected)| cell.abs_diff(expected) <= 1),
                "{width}x{height}: {cells:?}, expected {expected:?} within one grey level"
            );
        }
    }

    #[test]
    fn pixels_that_do_not_match_the_sides_are_refused() {
        let error = Thumbnail::of_rgb(4, 4, &[0; 47]).expect_err("one byte short");
        insta::assert_snapshot!(error, @"frame of 4x4 RGB: expected both sides above zero and 48 bytes, got 47");
        let error = Thumbnail::of_rgb(4, 4, &[0; 49]).expect_err("one byte too many");
        insta::assert_snapshot!(error, @"frame of 4x4 RGB: expected both sides above zero and 48 bytes, got 49");
        for (width, height) in [(0, 4), (4, 0), (0, 0), (u32::MAX, u32::MAX)] {
            assert!(
                Thumbnail::of_rgb(width, height, &[]).is_err(),
                "{width}x{height}"
            );
        }
    }

    proptest! {
        /// Whatever the scene does, a frame is admitted at least every `max_age`.
        #[test]
        fn a_frame_is_admitted_at_least_every_max_age(lights in prop::collection::vec(0_usize..200, 1..60), max_age in 1_u64..20) {
            let mut gate = gate(0.5, max_age);
            let mut last = 0;
            for (second, bright) in (0_u64..).zip(lights) {
                if let Decision::Admit(_) = gate.admit(lit(bright), Duration::from_secs(second)) {
                    last = second;
                }
                prop_assert!(second - last < max_age);
            }
        }

        #[test]
        fn every_pixel_counts_in_one_cell(cells in 1_usize..100, more in 0_usize..5000) {
            let pixels = cells + more;
            let covered: Vec<_> = (0..cells).map(|cell| covered(cell, cells, pixels)).collect();
            prop_assert_eq!((covered[0].start, covered[cells - 1].end), (0, pixels));
            prop_assert!(covered.windows(2).all(|pair| pair[0].end == pair[1].start));
            let (least, most) = (pixels / cells, pixels.div_ceil(cells));
            prop_assert!(covered.iter().all(|range| (least..=most).contains(&range.len())));
        }

        #[test]
        fn a_frame_equals_itself(pixels in prop::collection::vec(any::<u8>(), 48)) {
            let thumbnail = Thumbnail::of_rgb(4, 4, &pixels).expect("48 bytes");
            prop_assert_eq!(thumbnail.changed_share(&thumbnail), 0.0);
        }
    }
}
