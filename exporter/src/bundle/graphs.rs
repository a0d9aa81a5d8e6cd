//! The graph files of a bundle: `onnx/PART_PRECISION.onnx`, under the names that published exports
//! have, and a second file beside it where a graph has external data.

use firmware_config::manifest::{Manifest, Part, Precision};

/// Folder of the graphs that every runtime loads.
const FOLDER: &str = "onnx/";

/// Bundle-relative path of a graph.
pub(crate) fn path(part: Part, precision: Precision) -> String {
    let suffix = match precision {
        // Published fp32 graphs have no suffix.
        Precision::Fp32 => String::new(),
        other => format!("_{}", other.as_str()),
    };
    format!("{FOLDER}{}{suffix}.onnx", part.as_str())
}

/// Bundle-relative path of the file with the external data of the graph at `graph`.
pub(crate) fn external_data_path(graph: &str) -> String {
    format!("{graph}_data")
}

/// A path without its folder, as graphs and `transformers.js` name their files.
pub(crate) fn file_name(path: &str) -> &str {
    path.trim_start_matches(FOLDER)
}

/// Size of the graph at `graph`, external data included.
pub(crate) fn bytes(manifest: &Manifest, graph: &str) -> u64 {
    let size = |path: &str| manifest.files.get(path).map_or(0, |entry| entry.bytes);
    size(graph) + size(&external_data_path(graph))
}

/// Whether a file of the bundle is a graph or the external data of one.
pub(crate) fn is_graph_file(manifest: &Manifest, file: &str) -> bool {
    manifest
        .graphs
        .iter()
        .any(|(_, graph)| file == graph || file == external_data_path(graph))
}

/// File names of the graphs that have external data.
pub(crate) fn with_external_data(manifest: &Manifest) -> Vec<String> {
    manifest
        .graphs
        .iter()
        .filter(|(_, graph)| manifest.files.contains_key(&external_data_path(graph)))
        .map(|(_, graph)| file_name(graph).to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn graphs_have_their_published_names() {
        let names = Precision::ALL.map(|precision| path(Part::DecoderModelMerged, precision));
        assert_eq!(
            names,
            [
                "onnx/decoder_model_merged.onnx",
                "onnx/decoder_model_merged_fp16.onnx",
                "onnx/decoder_model_merged_int8.onnx"
            ]
        );
        assert_eq!(
            external_data_path(&names[0]),
            "onnx/decoder_model_merged.onnx_data"
        );
        assert_eq!(file_name(&names[0]), "decoder_model_merged.onnx");
    }
}
