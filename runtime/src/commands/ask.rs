//! `egret ask`: asks one question about images, a clip or text alone, and prints the answer with
//! its confidence.

mod clip;
mod record;

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::anyhow;
use devices::file::readable;
use vlm::answer::{Answer, Piece};
use vlm::{BackendChoice, Content, Options, Picture, Request, Role, Sink, Split, Turn, Vlm};

use crate::commands::exit::{Exit, Failure, OrExit};
use crate::commands::memory;
use crate::commands::output::print;

/// Arguments of `egret ask`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Bundle folder, written by egret-export.
    #[arg(long, value_name = "DIR")]
    bundle: PathBuf,
    /// Image file to ask about; may be given several times, in order.
    #[arg(long, value_name = "FILE")]
    image: Vec<PathBuf>,
    /// Video file to ask about, put after the images.
    #[arg(long, value_name = "FILE")]
    video: Option<PathBuf>,
    /// System prompt, put before the question.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Answers to choose from; without candidates the answer is free text.
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    candidates: Vec<String>,
    /// Whether images are split into tiles, for small text.
    #[arg(long, value_enum, default_value_t)]
    split: SplitArg,
    /// Longest free-text answer in tokens.
    #[arg(long, value_name = "N", default_value_t = Request::MAX_NEW_TOKENS as u32, value_parser = clap::value_parser!(u32).range(1..))]
    max_new_tokens: u32,
    #[command(flatten)]
    engine: EngineArgs,
    /// End stdout with one JSON object on one line.
    #[arg(long)]
    json: bool,
    /// Add the model's inputs and logits to the JSON object.
    #[arg(long, requires = "json")]
    trace: bool,
    /// The question.
    #[arg(value_name = "QUESTION")]
    question: String,
}

/// Arguments of every command that runs a bundle.
#[derive(Debug, Clone, clap::Args)]
pub struct EngineArgs {
    /// Inference engine; auto uses ONNX Runtime if its library is found, else tract.
    #[arg(long, value_enum, default_value_t)]
    backend: BackendArg,
    /// Inference threads; by default the engine chooses.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Fail unless this execution provider is used.
    #[arg(long, value_name = "EP", value_parser = ["cpu", "cuda", "tensorrt", "tract"])]
    require_execution_provider: Option<String>,
}

impl EngineArgs {
    /// The options with which the bundle is opened.
    pub fn options(&self) -> Options {
        Options {
            backend: match self.backend {
                BackendArg::Auto => BackendChoice::Auto,
                BackendArg::Ort => BackendChoice::Ort,
                BackendArg::Tract => BackendChoice::Tract,
            },
            threads: self.threads.map(usize::from),
            ort_library: None,
            require_execution_provider: self.require_execution_provider.clone(),
        }
    }
}

#[derive(Debug, Clone, Copy, Default, clap::ValueEnum)]
enum BackendArg {
    #[default]
    Auto,
    Ort,
    Tract,
}

#[derive(Debug, Clone, Copy, Default, clap::ValueEnum)]
enum SplitArg {
    #[default]
    Auto,
    On,
    Off,
}

/// Asks the question and prints the answer.
///
/// # Errors
/// When a file cannot be read, the bundle cannot be used, or the model cannot answer the question.
pub fn run(args: &Args) -> Result<Exit, Failure> {
    check_candidates(&args.candidates)?;
    let pictures = args
        .image
        .iter()
        .map(|path| read_picture(path))
        .collect::<Result<Vec<_>, _>>()?;
    let mut vlm = Vlm::open(&args.bundle, &args.engine.options())?;
    let request = Request {
        turns: turns(args, pictures, &vlm)?,
        candidates: args
            .candidates
            .iter()
            .map(|candidate| candidate.trim().to_owned())
            .collect(),
        split: match args.split {
            SplitArg::Auto => Split::Auto,
            SplitArg::On => Split::On,
            SplitArg::Off => Split::Off,
        },
        max_new_tokens: args.max_new_tokens as usize,
        top_logprobs: 0,
        trace: args.trace,
    };
    if args.json {
        let answer = vlm.ask(&request)?;
        let record = record::record(&answer, vlm.identity(), memory::peak_rss_bytes())
            .or_exit(Exit::Internal)?;
        print(&format!("{record}\n"))?;
    } else {
        let answer = ask_printing(&mut vlm, &request)?;
        print(&summary(&answer, &vlm))?;
    }
    Ok(Exit::Done)
}

/// Refuses a single candidate, and an empty one.
fn check_candidates(candidates: &[String]) -> Result<(), Failure> {
    let found = match candidates {
        [] => return Ok(()),
        _ if candidates
            .iter()
            .any(|candidate| candidate.trim().is_empty()) =>
        {
            "an empty one"
        }
        [_] => "one",
        _ => return Ok(()),
    };
    let message = format_args!(
        "--candidates: found {found}, expected two or more, as in yes,no; leave it out for free text"
    );
    Err(Failure::new(Exit::Usage, message))
}

/// The conversation: system prompt, then images, clip and question, in the order of the model's
/// training.
fn turns(args: &Args, pictures: Vec<Picture>, vlm: &Vlm) -> Result<Vec<Turn>, Failure> {
    let system = args.system.iter().map(|text| Turn {
        role: Role::System,
        content: vec![Content::Text(text.clone())],
    });
    let mut content: Vec<Content> = pictures.into_iter().map(Content::Picture).collect();
    if let Some(path) = &args.video {
        content.push(Content::Clip(clip::read(path, &vlm.manifest().video)?));
    }
    content.push(Content::Text(args.question.clone()));
    Ok(system
        .chain([Turn {
            role: Role::User,
            content,
        }])
        .collect())
}

/// Most bytes read of an image file: 64 million pixels of 16-bit RGBA, uncompressed. A longer file
/// is cut off, and fails to decode.
const PICTURE_BYTES_MAX: u64 = 512 << 20;

fn read_picture(path: &Path) -> Result<Picture, Failure> {
    let named = |error: anyhow::Error| error.context(format!("cannot show {}", path.display()));
    let read = || {
        // Opening a pipe could block, and reading a device might not end.
        readable(path)?;
        let mut bytes = Vec::new();
        std::fs::File::open(path)?
            .take(PICTURE_BYTES_MAX)
            .read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let unread = |error: io::Error| named(anyhow!("{error}; name an image file that can be read"));
    let bytes = read().map_err(unread).or_exit(Exit::Io)?;
    // A file that is not an image is a usage error: reading it again will not help.
    Picture::decode(&bytes)
        .map_err(|error| named(error.into()))
        .or_exit(Exit::Usage)
}

/// Asks, and prints the answer piece by piece; free text is printed while it is decoded.
fn ask_printing(vlm: &mut Vlm, request: &Request) -> Result<Answer, Failure> {
    let mut stdout = Stdout { printed: Ok(()) };
    let answer = vlm.ask_streaming(request, &mut stdout)?;
    stdout.printed?;
    if answer.text.is_empty() {
        print("(no answer: the model produced no text)")?;
    }
    Ok(answer)
}

/// Prints each piece; cancelled when standard output cannot be written.
struct Stdout {
    printed: Result<(), Failure>,
}

impl Sink for Stdout {
    fn piece(&mut self, piece: &Piece) {
        self.printed = print(&piece.text);
    }

    fn is_cancelled(&self) -> bool {
        self.printed.is_err()
    }
}

/// The lines printed below the answer.
fn summary(answer: &Answer, vlm: &Vlm) -> String {
    let probabilities: Vec<String> = answer
        .candidates
        .iter()
        .map(|candidate| format!("{} {:.3}", candidate.text, candidate.probability))
        .collect();
    let probabilities = if probabilities.is_empty() {
        String::new()
    } else {
        format!(" ({})", probabilities.join(", "))
    };
    let identity = vlm.identity();
    format!(
        "\n\nconfidence {:.3}, uncalibrated{probabilities}\n{} {} on {} ({}): {} prompt tokens, first token after {:.2} s, {:.2} s in all\n",
        answer.confidence.p,
        identity.name,
        identity.precision,
        identity.backend,
        identity.execution_provider,
        answer.prompt_tokens,
        answer.timings.first_token.as_secs_f64(),
        answer.timings.total.as_secs_f64(),
    )
}
