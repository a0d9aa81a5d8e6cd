//! Bundles exported from synthetic checkpoints, made once and cached.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use firmware_config::manifest::Precision;

use crate::kept::kept;
use crate::synth::Synthetic;

/// A bundle of `synthetic`, made once for this target folder and cached there; read-only for
/// tests.
///
/// # Panics
/// When the export fails.
pub fn bundle(synthetic: &Synthetic, precision: Precision) -> PathBuf {
    let source = synthetic.shared();
    let key = source
        .parent()
        .and_then(Path::file_name)
        .expect("a shared checkpoint has a parent folder named by its key")
        .to_string_lossy()
        .into_owned();
    let precision_name = format!("{precision:?}").to_lowercase();
    kept(
        &format!("bundles/{key}-{precision_name}-{:016x}", exporter_sources()),
        |dir| {
            exporter::export(
                &source,
                dir,
                &exporter::ExportOptions {
                    precision,
                    name: Some(synthetic.name.clone()),
                    replace: false,
                },
            )
            .expect("a synthetic checkpoint exports");
        },
    )
}

/// A hash over the exporter's sources: cached bundles are made again when the exporter changes.
fn exporter_sources() -> u64 {
    fn visit(dir: &Path, hasher: &mut DefaultHasher) {
        let mut paths: Vec<PathBuf> = std::fs::read_dir(dir)
            .expect("the source folder can be read")
            .map(|entry| entry.expect("a folder entry can be read").path())
            .collect();
        paths.sort();
        for path in paths {
            if path.is_dir() {
                visit(&path, hasher);
            } else {
                std::fs::read(&path)
                    .expect("a source can be read")
                    .hash(hasher);
            }
        }
    }
    let mut hasher = DefaultHasher::new();
    for part in ["../exporter/src", "../firmware-config/src"] {
        visit(
            &Path::new(env!("CARGO_MANIFEST_DIR")).join(part),
            &mut hasher,
        );
    }
    hasher.finish()
}

/// A copy of a bundle that a test may damage, made of hard links. [`damage`] replaces a file
/// instead of writing into it, so the original stays intact.
///
/// # Panics
/// When files cannot be linked.
pub fn linked_copy(bundle: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder can be made");
    for entry in std::fs::read_dir(bundle).expect("a bundle is a folder") {
        let entry = entry.expect("an entry can be read");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            linked_copy(&entry.path(), &target);
        } else {
            std::fs::hard_link(entry.path(), target).expect("a file can be linked");
        }
    }
}

/// Replaces a file of a linked copy with its content after `change`.
///
/// # Panics
/// When the file cannot be read or written.
pub fn damage(file: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut content = std::fs::read(file).expect("a bundle's file can be read");
    change(&mut content);
    std::fs::remove_file(file).expect("a linked file can be unlinked");
    std::fs::write(file, content).expect("a file can be written");
}
