//! What a checkpoint is called: its folder's name, or the model's where the folder is a snapshot in
//! the hub's cache (`models--OWNER--MODEL/snapshots/COMMIT`).

use std::path::{Component, Path};

use super::error::CheckpointError;

/// Folder of a model's snapshots in the hub's cache.
pub(crate) const SNAPSHOTS: &str = "snapshots";

/// The name of a checkpoint folder, also of `.` and of paths that end in a slash.
pub(super) fn of_folder(dir: &Path) -> Result<String, CheckpointError> {
    let absolute = dir
        .canonicalize()
        .map_err(|source| CheckpointError::io(dir, source))?;
    if let Some(model) = model_of_snapshot(&absolute) {
        return Ok(model.to_owned());
    }
    Ok(absolute.file_name().map_or_else(
        || "model".into(),
        |name| name.to_string_lossy().into_owned(),
    ))
}

/// The model whose snapshot `dir` is, if it is one: the last path component is then a commit, which
/// is no name for a model.
fn model_of_snapshot(dir: &Path) -> Option<&str> {
    let mut parts = dir.components().rev().map(Component::as_os_str);
    let (_commit, snapshots, model) = (parts.next()?, parts.next()?, parts.next()?);
    let (_owner, model) = model.to_str()?.strip_prefix("models--")?.split_once("--")?;
    (snapshots == SNAPSHOTS).then_some(model)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_named_after_its_model() {
        for (dir, model) in [
            (
                "/cache/hub/models--owner--Smol-1.2_b/snapshots/7f1ad0",
                Some("Smol-1.2_b"),
            ),
            ("/cache/hub/models--owner--Smol-1.2_b/snapshots", None),
            ("/cache/hub/models--owner--Smol-1.2_b/other/7f1ad0", None),
            ("/cache/hub/models--owner/snapshots/7f1ad0", None),
            ("snapshots/7f1ad0", None),
        ] {
            assert_eq!(model_of_snapshot(Path::new(dir)), model, "{dir}");
        }
    }
}
