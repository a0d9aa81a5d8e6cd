//! The models that a request names in `model` and `models`. Pure.

use crate::openai::ApiError;

/// The model name that leaves the choice to the router.
pub(super) const AUTO: &str = "auto";
/// The model name of the bundle on this box, whatever its own name.
pub(super) const LOCAL: &str = "local";

/// A model that a request names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ModelChoice {
    /// The router decides.
    Auto,
    /// The bundle on this box.
    Local,
    /// A pool, by its id.
    Pool(String),
}

/// Reads `model` and `models`, in the order in which they are asked; a request that names none
/// leaves the choice to the router.
///
/// # Errors
/// 404 when a name is unknown, even far down the list: a fallback that cannot work is better
/// reported before it is needed.
pub(super) fn model_choices(
    model: Option<&str>,
    models: &[String],
    local: &str,
    pools: &[String],
) -> Result<Vec<ModelChoice>, ApiError> {
    let mut names: Vec<&str> = model
        .into_iter()
        .chain(models.iter().map(String::as_str))
        .collect();
    if names.is_empty() {
        names.push(AUTO);
    }
    let mut choices = Vec::new();
    for name in names {
        let choice = match name {
            AUTO => ModelChoice::Auto,
            LOCAL => ModelChoice::Local,
            name if name == local => ModelChoice::Local,
            name if pools.iter().any(|pool| pool == name) => ModelChoice::Pool(name.to_owned()),
            name => return Err(ApiError::model_not_found(name, &known_names(local, pools))),
        };
        if !choices.contains(&choice) {
            choices.push(choice);
        }
    }
    Ok(choices)
}

/// Every value of `model`.
pub(super) fn known_names(local: &str, pools: &[String]) -> Vec<String> {
    let mut names = vec![AUTO.to_owned(), LOCAL.to_owned(), local.to_owned()];
    names.extend(pools.iter().cloned());
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_in_order_and_unknown_ones_refused() {
        let pools = ["big".to_owned(), "bigger".to_owned()];
        let read = |model: Option<&str>, models: &[&str]| {
            let models: Vec<_> = models.iter().map(|&name| name.to_owned()).collect();
            model_choices(model, &models, "nano", &pools)
                .map_err(|error| (error.status, error.code, error.message))
        };
        let pool = |id: &str| ModelChoice::Pool(id.to_owned());
        assert_eq!(read(None, &[]), Ok(vec![ModelChoice::Auto]));
        assert_eq!(read(Some("auto"), &[]), Ok(vec![ModelChoice::Auto]));
        assert_eq!(
            read(Some("nano"), &["local", "big"]),
            Ok(vec![ModelChoice::Local, pool("big")])
        );
        assert_eq!(
            read(None, &["bigger", "local"]),
            Ok(vec![pool("bigger"), ModelChoice::Local])
        );
        let message =
            "the model `gpt` does not exist here; expected one of: auto, local, nano, big, bigger";
        assert_eq!(
            read(Some("big"), &["gpt"]),
            Err((404, Some("model_not_found".to_owned()), message.to_owned()))
        );
    }
}
