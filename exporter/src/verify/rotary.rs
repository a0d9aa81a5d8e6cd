//! The rotary tables of the decoder at every position: probes reach only the first few hundred.

use firmware_config::manifest::TextGeometry;

use crate::checkpoint::Checkpoint;
use crate::graph::Element;
use crate::graph::onnx::GraphFile;
use crate::report::WeightDifference;

/// Largest error of a cosine or sine, which allows for another order of rounding.
const TOLERANCE: f64 = 1e-6;

/// Which function of the angles a table holds.
#[derive(Clone, Copy)]
enum Table {
    Cos,
    /// Negative in the first half, as rotate-half needs it.
    Sin,
}

/// Looks for both tables among the constants that are not tensors of the checkpoint, and returns
/// what is wrong with each.
pub(super) fn compare(
    decoder: &GraphFile,
    text: &TextGeometry,
    checkpoint: &Checkpoint,
) -> Vec<WeightDifference> {
    let theta = checkpoint.config.text.rope_theta;
    let dims = [text.context_length, text.head_dim];
    let tables: Vec<&[u8]> = decoder
        .constants()
        .filter(|(name, constant)| {
            checkpoint.shape(name).is_none()
                && constant.element == Element::F32
                && constant.dims == dims
        })
        .map(|(_, constant)| constant.bytes)
        .collect();
    let differs = |(name, table): (&str, Table)| {
        let wrong = tables
            .iter()
            .map(|bytes| wrong(bytes, table, text.head_dim, theta))
            .min();
        let diagnostic = match wrong {
            Some(0) => return None,
            Some(wrong) => format!(
                "{wrong} of {} values are not those of theta {theta}",
                dims[0] * dims[1]
            ),
            None => format!("no constant of shape {dims:?} in the decoder"),
        };
        Some(WeightDifference {
            name: name.into(),
            diagnostic,
        })
    };
    [("rotary cosines", Table::Cos), ("rotary sines", Table::Sin)]
        .into_iter()
        .filter_map(differs)
        .collect()
}

/// How many values of a table, [positions, head_dim] f32, are not cos or sin of position ·
/// theta^(-2i / head_dim).
fn wrong(bytes: &[u8], table: Table, head_dim: usize, theta: f64) -> usize {
    let half = head_dim / 2;
    let frequencies: Vec<f32> = (0..half)
        .map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64) as f32)
        .collect();
    let is_wrong = |(at, &value): (usize, &[u8; 4])| {
        let (position, i) = (at / head_dim, at % head_dim);
        let angle = f64::from(position as f32 * frequencies[i % half]);
        let expected = match table {
            Table::Cos => angle.cos(),
            Table::Sin if i < half => -angle.sin(),
            Table::Sin => angle.sin(),
        };
        let off = (f64::from(f32::from_le_bytes(value)) - expected).abs();
        off.is_nan() || off > TOLERANCE
    };
    bytes
        .as_chunks()
        .0
        .iter()
        .enumerate()
        .filter(|&value| is_wrong(value))
        .count()
}
