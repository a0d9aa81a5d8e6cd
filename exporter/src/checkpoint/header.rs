//! The header of a safetensors file, read from untrusted bytes.
//!
//! The `safetensors` crate decides: size limit, offsets in order and without gaps, shapes that do
//! not overflow. Its errors do not always name the tensor, so a refused header is searched once
//! more for the diagnostic.

use std::collections::BTreeMap;
use std::ops::Range;

use safetensors::tensor::TensorInfo;
use safetensors::{Dtype, SafeTensorError, SafeTensors};

/// Bytes of the length that every file starts with.
const LENGTH_BYTES: usize = 8;

/// One tensor of a header.
#[derive(Debug)]
pub(super) struct HeaderTensor {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    /// Byte range in the whole file, inside it.
    pub(super) bytes: Range<usize>,
}

/// What is wrong with a header.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderError {
    /// Fewer bytes than the length of a header takes.
    #[error("the file is {bytes} bytes long, expected at least 8")]
    TooShort {
        /// Length of the file.
        bytes: usize,
    },
    /// The header is longer than the file or than the format allows.
    #[error(
        "its header is {claimed} bytes long, expected at most the {bytes} of the file and 100,000,000"
    )]
    Length {
        /// What the first eight bytes say.
        claimed: u64,
        /// Length of the file.
        bytes: usize,
    },
    /// A tensor's byte range is not where the one before it ends, runs backwards, or overlaps.
    #[error(
        "tensor {tensor:?} is at bytes {from}..{to}, expected the bytes right after the tensor before it"
    )]
    Offsets {
        /// The tensor.
        tensor: String,
        /// Start of its range in the data part.
        from: usize,
        /// End of its range in the data part.
        to: usize,
    },
    /// A tensor's byte range is not as long as its shape.
    #[error(
        "tensor {tensor:?} of shape {shape:?} {dtype} is at bytes {from}..{to}, expected as many bytes as its shape takes"
    )]
    Size {
        /// The tensor.
        tensor: String,
        /// Its dimensions.
        shape: Vec<usize>,
        /// Its type.
        dtype: String,
        /// Start of its range in the data part.
        from: usize,
        /// End of its range in the data part.
        to: usize,
    },
    /// The tensors do not end where the file does.
    #[error("its tensors take {needed} bytes of data, the file has {present}")]
    Data {
        /// Where the last tensor ends.
        needed: usize,
        /// Bytes after the header.
        present: usize,
    },
    /// Anything else the format forbids.
    #[error("not a safetensors header: {0}")]
    Format(SafeTensorError),
}

/// Reads and checks the header of a whole file.
pub(super) fn read(file: &[u8]) -> Result<BTreeMap<String, HeaderTensor>, HeaderError> {
    let (header_bytes, metadata) =
        SafeTensors::read_metadata(file).map_err(|error| explain(file, error))?;
    let data = LENGTH_BYTES + header_bytes;
    let entry = |info: &TensorInfo| HeaderTensor {
        dtype: info.dtype,
        shape: info.shape.clone(),
        bytes: data + info.data_offsets.0..data + info.data_offsets.1,
    };
    Ok(metadata
        .tensors()
        .into_iter()
        .map(|(tensor, info)| (tensor, entry(info)))
        .collect())
}

/// Finds the tensor and the numbers for a diagnostic.
fn explain(file: &[u8], error: SafeTensorError) -> HeaderError {
    let Some((length, rest)) = file.split_first_chunk::<LENGTH_BYTES>() else {
        return HeaderError::TooShort { bytes: file.len() };
    };
    let claimed = u64::from_le_bytes(*length);
    match &error {
        SafeTensorError::HeaderTooLarge | SafeTensorError::InvalidHeaderLength => {
            return HeaderError::Length {
                claimed,
                bytes: file.len(),
            };
        }
        SafeTensorError::InvalidOffset(_)
        | SafeTensorError::TensorInvalidInfo
        | SafeTensorError::ValidationOverflow
        | SafeTensorError::MetadataIncompleteBuffer => {}
        _ => return HeaderError::Format(error),
    }
    let Some((header, data)) = usize::try_from(claimed)
        .ok()
        .and_then(|n| rest.split_at_checked(n))
    else {
        return HeaderError::Format(error);
    };
    let mut tensors = entries(header);
    tensors.sort_by_key(|(_, info)| info.data_offsets);
    let mut end = 0;
    for (tensor, info) in tensors {
        let (from, to) = info.data_offsets;
        if from != end || to < from {
            return HeaderError::Offsets { tensor, from, to };
        }
        if size(&info) != Some(to - from) {
            return HeaderError::Size {
                tensor,
                shape: info.shape,
                dtype: info.dtype.to_string(),
                from,
                to,
            };
        }
        end = to;
    }
    if end != data.len() {
        return HeaderError::Data {
            needed: end,
            present: data.len(),
        };
    }
    HeaderError::Format(error)
}

/// The tensors of a header that the crate could parse but did not accept.
fn entries(header: &[u8]) -> Vec<(String, TensorInfo)> {
    let fields: BTreeMap<String, serde_json::Value> =
        serde_json::from_slice(header).unwrap_or_default();
    fields
        .into_iter()
        .filter_map(|(tensor, info)| Some((tensor, serde_json::from_value(info).ok()?)))
        .collect()
}

/// Bytes that a shape takes, unless they overflow.
fn size(info: &TensorInfo) -> Option<usize> {
    let values = info
        .shape
        .iter()
        .try_fold(1usize, |product, &dim| product.checked_mul(dim))?;
    Some(values.checked_mul(info.dtype.bitsize())? / 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data_bytes: usize) -> Vec<u8> {
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.as_bytes());
        file.resize(file.len() + data_bytes, 0);
        file
    }

    fn refusal(file: &[u8]) -> String {
        read(file)
            .expect_err("an invalid header is refused")
            .to_string()
    }

    #[test]
    fn a_valid_header_gives_ranges_in_the_file() {
        let header = r#"{"__metadata__":{"format":"pt"},"w":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]}}"#;
        let tensors = read(&file(header, 8)).unwrap();
        assert_eq!(tensors["w"].shape, [2, 1]);
        assert_eq!(tensors["w"].bytes, 8 + header.len()..16 + header.len());
    }

    #[test]
    fn every_contradiction_is_named() {
        struct Case {
            fault: &'static str,
            header: &'static str,
            data_bytes: usize,
            says: &'static str,
        }
        let cases = [
            Case {
                fault: "offsets past the end",
                header: r#"{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#,
                data_bytes: 8,
                says: "its tensors take 16 bytes of data, the file has 8",
            },
            Case {
                fault: "bytes that belong to no tensor",
                header: r#"{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#,
                data_bytes: 20,
                says: "its tensors take 16 bytes of data, the file has 20",
            },
            Case {
                fault: "overlapping",
                header: r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#,
                data_bytes: 12,
                says: r#"tensor "b" is at bytes 4..12, expected the bytes right after the tensor before it"#,
            },
            Case {
                fault: "reversed",
                header: r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#,
                data_bytes: 8,
                says: r#"tensor "w" is at bytes 8..0, expected the bytes right after the tensor before it"#,
            },
            Case {
                fault: "a shape whose product overflows",
                header: r#"{"w":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,8]}}"#,
                data_bytes: 8,
                says: r#"tensor "w" of shape [4294967296, 4294967296, 4] F32 is at bytes 0..8, expected as many bytes as its shape takes"#,
            },
            Case {
                fault: "a shape of another size",
                header: r#"{"w":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#,
                data_bytes: 8,
                says: r#"tensor "w" of shape [3] F32 is at bytes 0..8, expected as many bytes as its shape takes"#,
            },
        ];
        for case in cases {
            assert_eq!(
                refusal(&file(case.header, case.data_bytes)),
                case.says,
                "{}",
                case.fault
            );
        }
    }

    #[test]
    fn a_header_of_a_terabyte_is_refused_unread() {
        let mut file = (1u64 << 40).to_le_bytes().to_vec();
        file.extend([b'{'; 24]);
        insta::assert_snapshot!(refusal(&file), @"its header is 1099511627776 bytes long, expected at most the 32 of the file and 100,000,000");
    }

    #[test]
    fn short_and_malformed_files_are_refused() {
        insta::assert_snapshot!(refusal(b"abc"), @"the file is 3 bytes long, expected at least 8");
        assert!(refusal(&file("{\"w\":", 0)).starts_with("not a safetensors header: "));
    }
}
