//! Whom a request wants to be answered by. Pure.

use crate::serve::openai::ApiError;

/// The model name that leaves the choice to the router.
pub(super) const AUTO: &str = "auto";
/// The model name of whatever bundle runs here.
pub(super) const LOCAL: &str = "local";

/// Whom a request wants to be answered by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// The router decides.
    Auto,
    /// The bundle on this box.
    Local,
    /// A pool, by its id.
    Pool(String),
}

/// Reads `model` and `models`: the first of the list that answers wins; a request that names nobody
/// leaves it to the router.
///
/// # Errors
/// 404 when a name is nobody's, even far down the list: a fallback that cannot work is better found
/// out before it is needed.
pub(super) fn targets(
    model: Option<&str>,
    models: &[String],
    local: &str,
    pools: &[String],
) -> Result<Vec<Target>, ApiError> {
    let mut names: Vec<&str> = model
        .into_iter()
        .chain(models.iter().map(String::as_str))
        .collect();
    if names.is_empty() {
        names.push(AUTO);
    }
    let mut targets = Vec::new();
    for name in names {
        let target = match name {
            AUTO => Target::Auto,
            LOCAL => Target::Local,
            name if name == local => Target::Local,
            name if pools.iter().any(|pool| pool == name) => Target::Pool(name.to_owned()),
            name => return Err(ApiError::model_not_found(name, &names_here(local, pools))),
        };
        if !targets.contains(&target) {
            targets.push(target);
        }
    }
    Ok(targets)
}

/// Everything `model` may be.
pub(super) fn names_here(local: &str, pools: &[String]) -> Vec<String> {
    let mut names = vec![AUTO.to_owned(), LOCAL.to_owned(), local.to_owned()];
    names.extend(pools.iter().cloned());
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_in_order_and_strangers_refused() {
        let pools = ["big".to_owned(), "bigger".to_owned()];
        let read = |model: Option<&str>, models: &[&str]| {
            let models: Vec<_> = models.iter().map(|&name| name.to_owned()).collect();
            targets(model, &models, "nano", &pools)
                .map_err(|error| (error.status, error.code, error.message))
        };
        let pool = |id: &str| Target::Pool(id.to_owned());
        assert_eq!(read(None, &[]), Ok(vec![Target::Auto]));
        assert_eq!(read(Some("auto"), &[]), Ok(vec![Target::Auto]));
        assert_eq!(
            read(Some("nano"), &["local", "big"]),
            Ok(vec![Target::Local, pool("big")])
        );
        assert_eq!(
            read(None, &["bigger", "local"]),
            Ok(vec![pool("bigger"), Target::Local])
        );
        let message = "the model `gpt` does not exist here; one of: auto, local, nano, big, bigger";
        assert_eq!(
            read(Some("big"), &["gpt"]),
            Err((404, Some("model_not_found".to_owned()), message.to_owned()))
        );
    }
}
