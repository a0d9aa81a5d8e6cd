//! Asks a model about an image. Arguments: bundle folder, image file, question.

use std::error::Error;
use std::fs;
use std::path::Path;

use vlm::{Answer, Options, Picture, Request, Vlm};

/// Loads the bundle and answers in free text.
pub fn ask(bundle: &Path, image: &Path, question: &str) -> Result<Answer, Box<dyn Error>> {
    let mut vlm = Vlm::open(bundle, &Options::default())?;
    let image = Picture::decode(&fs::read(image)?)?;
    let answer = vlm.ask(&Request::question(image, question))?;
    Ok(answer)
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [bundle, image, question] = &args[..] else {
        return Err("usage: ask BUNDLE IMAGE QUESTION".into());
    };
    let answer = ask(bundle.as_ref(), image.as_ref(), question)?;
    println!("{} (confidence {:.2})", answer.text, answer.confidence.p);
    Ok(())
}
