//! Everything a bundle needs besides its graphs, read off a checkpoint folder and checked.
//!
//! An export is made from it, an inspection shows it, and a verification reads it again.

mod chat_template;
mod clips;
mod generation;
mod pictures;
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

/// How a checkpoint's model is fed and read.
#[derive(Debug)]
pub(crate) struct Metadata {
    pub(crate) image: ImageRules,
    pub(crate) video: VideoRules,
    pub(crate) prompt: PromptTokens,
    pub(crate) template: ChatTemplate,
    /// Where `image` and `video` stand.
    pub(crate) processor: Processor,
    /// Contents of the tokens that end an answer.
    pub(crate) stops: Vec<String>,
    /// What an export does otherwise than transformers would, for people.
    pub(crate) warnings: Vec<String>,
}

impl Metadata {
    /// Reads and checks all of it.
    pub(crate) fn read(checkpoint: &Checkpoint, model: &SmolVlm) -> Result<Self, CheckpointError> {
        let source = checkpoint.dir();
        let processor = Processor::read(source)?;
        let image = pictures::rules(&processor.pictures, &model.geometry, model.tokens_per_tile)?;
        let expected = model.tokens_per_tile;
        if let Some(found) = processor
            .own
            .field("image_seq_len", "a whole number")?
            .filter(|&found: &usize| found != expected)
        {
            return Err(processor.own.diagnostic(format!(
                "image_seq_len is {found}, the vision encoder gives {expected} tokens a tile"
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
            "generation_config.json says {changes}: answers are decoded greedily, without it"
        ));
    }
    let differences = clips::differences(&processor.clips, image)?;
    if !differences.is_empty() {
        let (place, differences) = (processor.clips.origin(), differences.join("; "));
        warnings.push(format!("frames of clips are prepared as pictures are, where {place} says otherwise: {differences}"));
    }
    let grid = model.geometry.vision.image_size / model.geometry.vision.patch_size;
    let moved = model.positions_moved_by_transformers();
    if moved > 0 {
        warnings.push(format!(
            "transformers rounds {moved} of {grid} positions a side to their neighbours on a grid of {grid} x {grid}; the bundle does \
             not, as the model was meant: its image features will differ from transformers'"
        ));
    }
    if template.path.is_none() {
        warnings.push(format!(
            "no chat template in {}: the family's is used",
            source.display()
        ));
    }
    if processor.pictures.path.is_none() {
        let dir = source.display();
        warnings.push(format!("neither {PROCESSOR} nor {PREPROCESSOR} in {dir} says how pictures are prepared: as the family does"));
    }
    for name in [GENERATION_CONFIG, PROCESSOR, TOKENIZER_CONFIG] {
        let path = source.join(name);
        if !path.exists() {
            warnings.push(format!(
                "{} is not there: made as the family has it",
                path.display()
            ));
        }
    }
    Ok(warnings)
}
