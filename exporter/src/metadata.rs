//! Everything a bundle needs besides its graphs, read from a checkpoint folder and checked.
//!
//! An export writes it, an inspection shows it, and a verification compares it.

mod chat_template;
mod clips;
mod generation;
mod images;
mod processor;
mod prompt;
pub(crate) mod special_tokens;

use std::path::Path;

use firmware_config::manifest::{ImageRules, PromptTokens, VideoRules};
use vlm::special_tokens::TOKENIZER_CONFIG;

use crate::arch::smolvlm::SmolVlm;
use crate::checkpoint::files::{GENERATION_CONFIG, PREPROCESSOR, PROCESSOR, TOKENIZER};
use crate::checkpoint::{Checkpoint, CheckpointError};

use chat_template::ChatTemplate;
use generation::Generation;
use processor::Processor;
use prompt::AddedTokens;

/// How the inputs of a checkpoint's model are prepared and its answers ended.
#[derive(Debug)]
pub(crate) struct Metadata {
    pub(crate) image: ImageRules,
    pub(crate) video: VideoRules,
    pub(crate) prompt: PromptTokens,
    pub(crate) template: ChatTemplate,
    /// Where `image` and `video` come from.
    pub(crate) processor: Processor,
    /// Contents of the tokens that end an answer.
    pub(crate) stops: Vec<String>,
    /// Where an export differs from transformers, for people.
    pub(crate) warnings: Vec<String>,
}

impl Metadata {
    /// Reads and checks all of it.
    pub(crate) fn read(checkpoint: &Checkpoint, model: &SmolVlm) -> Result<Self, CheckpointError> {
        let source = checkpoint.dir();
        let processor = Processor::read(source)?;
        let image = images::rules(&processor.images, &model.geometry, model.tokens_per_tile)?;
        let expected = model.tokens_per_tile;
        if let Some(found) = processor
            .own
            .field("image_seq_len", "a whole number")?
            .filter(|&found: &usize| found != expected)
        {
            return Err(processor.own.diagnostic(format!(
                "image_seq_len is {found}, expected the {expected} tokens that the vision encoder gives for a tile"
            )));
        }
        let video = clips::rules(&processor.clips)?;
        let tokens = AddedTokens::read(&source.join(TOKENIZER))?;
        let generation = Generation::read(source)?;
        let prompt = tokens.prompt(
            checkpoint.config.image_token_id,
            &generation.eos,
            model.geometry.text.vocab_size,
        )?;
        let template = ChatTemplate::find(source)?;
        template.check(special_tokens::named(
            source,
            model.geometry.text.context_length,
        )?)?;
        let stops = prompt.stop.iter().map(|&id| tokens.content(id)).collect();
        let warnings = warnings(source, model, &generation, &processor, &image, &template)?;
        Ok(Metadata {
            image,
            video,
            prompt,
            template,
            processor,
            stops,
            warnings,
        })
    }
}

fn warnings(
    source: &Path,
    model: &SmolVlm,
    generation: &Generation,
    processor: &Processor,
    image: &ImageRules,
    template: &ChatTemplate,
) -> Result<Vec<String>, CheckpointError> {
    let mut warnings = Vec::new();
    if !generation.changes.is_empty() {
        let changes = generation.changes.join(", ");
        warnings.push(format!(
            "{GENERATION_CONFIG} has {changes}: ignored, answers are decoded greedily"
        ));
    }
    let differences = clips::differences(&processor.clips, image)?;
    if !differences.is_empty() {
        let (place, differences) = (processor.clips.origin(), differences.join("; "));
        warnings.push(format!(
            "frames of clips are prepared like images, although {place} differs: {differences}"
        ));
    }
    let grid = model.geometry.vision.image_size / model.geometry.vision.patch_size;
    let moved = model.positions_moved_by_transformers();
    if moved > 0 {
        warnings.push(format!(
            "transformers rounds {moved} of {grid} positions along a side to their neighbours on a grid of {grid} x {grid}; the bundle \
             does not, as the model intends, so its image features differ from those of transformers"
        ));
    }
    if template.path.is_none() {
        warnings.push(format!(
            "no chat template in {}: the default of the model family is used",
            source.display()
        ));
    }
    if processor.images.path.is_none() {
        let dir = source.display();
        warnings.push(format!("neither {PROCESSOR} nor {PREPROCESSOR} in {dir} says how images are prepared: the defaults of the model family are used"));
    }
    for name in [GENERATION_CONFIG, PROCESSOR, TOKENIZER_CONFIG] {
        let path = source.join(name);
        if !path.exists() {
            warnings.push(format!(
                "{} is missing: written with the defaults of the model family",
                path.display()
            ));
        }
    }
    Ok(warnings)
}
