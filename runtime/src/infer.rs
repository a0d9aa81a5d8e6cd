//! The inference thread: owns the model and answers one request at a time, in order of arrival.
//!
//! An answer takes long and needs `&mut`, so the model has a thread of its own; callers hold a
//! [`Handle`]. A camera asks all its rules about one frame in one job, so that they share the
//! frame's prefix in the model's cache.
//!
//! The thread never waits for a caller: answers and their pieces go into queues with room for all
//! of them, which is bounded by `max_new_tokens` and the model's context. A caller that reads
//! slowly, or not at all, costs that memory and delays no other.

use firmware_config::agent;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;
use vlm::answer::Piece;
use vlm::{Answer, BackendChoice, Identity, Options, Request, Sink, Vlm, VlmError};

/// Jobs that may wait for the thread. When the queue is full, a single request fails with
/// [`AskError::Busy`], and a camera waits.
pub const QUEUE: usize = 16;

/// Upper bound of a queue of pieces: more than the tokens of any context.
const PIECES_MAX: usize = 1 << 20;

/// The options with which the configured bundle is opened.
pub(crate) fn options(model: &agent::Model) -> Options {
    Options {
        backend: match model.backend {
            agent::BackendChoice::Auto => BackendChoice::Auto,
            agent::BackendChoice::Ort => BackendChoice::Ort,
            agent::BackendChoice::Tract => BackendChoice::Tract,
        },
        threads: model.threads,
        ort_library: model.ort_library.clone(),
        require_execution_provider: model.require_execution_provider.clone(),
    }
}

/// What answers requests: a [`Vlm`], or a test double.
pub trait Answerer: Send {
    /// Which model it is.
    fn identity(&self) -> &Identity;

    /// Answers one request, piece by piece, until the sink cancels.
    ///
    /// # Errors
    /// When the request is invalid for the model, or the model fails.
    fn answer(&mut self, request: &Request, sink: &mut dyn Sink) -> Result<Answer, VlmError>;
}

impl Answerer for Vlm {
    fn identity(&self) -> &Identity {
        Vlm::identity(self)
    }

    fn answer(&mut self, request: &Request, sink: &mut dyn Sink) -> Result<Answer, VlmError> {
        self.ask_streaming(request, sink)
    }
}

/// Why a request was not answered.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The queue is full.
    #[error("the model's queue of {QUEUE} requests is full; try again later")]
    Busy,
    /// The thread ended.
    #[error("the model was stopped")]
    Stopped,
    /// The request is invalid, or the model failed.
    #[error(transparent)]
    Model(#[from] VlmError),
}

/// Sends requests to the model; cheap to clone. The thread ends when the last handle is dropped.
#[derive(Debug, Clone)]
pub struct Handle {
    jobs: mpsc::Sender<Job>,
    identity: Identity,
}

/// Requests that are answered in a row, without others in between.
#[derive(Debug)]
struct Job {
    requests: Vec<Request>,
    /// Where pieces of the answer are sent as they are decoded.
    pieces: Option<mpsc::Sender<Piece>>,
    /// Has room for every answer; closed when the caller gave up.
    replies: mpsc::Sender<Result<Answer, VlmError>>,
}

/// Sends an answer's pieces to the caller; cancelled when the caller is gone.
struct CallerSink<'a>(&'a Job);

impl Sink for CallerSink<'_> {
    fn piece(&mut self, piece: &Piece) {
        if let Some(pieces) = &self.0.pieces {
            // The queue has room for every piece; a closed receiver cancels.
            let _ = pieces.try_send(piece.clone());
        }
    }

    fn is_cancelled(&self) -> bool {
        let pieces = self.0.pieces.as_ref();
        self.0.replies.is_closed() || pieces.is_some_and(mpsc::Sender::is_closed)
    }
}

/// The thread's side; [`Inference::run`] is its body.
pub struct Inference {
    model: Box<dyn Answerer>,
    jobs: mpsc::Receiver<Job>,
}

/// A queue with room for every piece of the answer to `request`.
pub fn pieces(request: &Request) -> (mpsc::Sender<Piece>, mpsc::Receiver<Piece>) {
    // Each piece has at least one token, except a remainder at the end; a chosen candidate is one
    // piece.
    mpsc::channel(request.max_new_tokens.saturating_add(1).min(PIECES_MAX))
}

/// The handle on a model, and its thread's side.
pub fn channel(model: impl Answerer + 'static) -> (Handle, Inference) {
    let (sender, jobs) = mpsc::channel(QUEUE);
    let handle = Handle {
        jobs: sender,
        identity: model.identity().clone(),
    };
    (
        handle,
        Inference {
            model: Box::new(model),
            jobs,
        },
    )
}

impl Handle {
    /// Which model answers.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Asks one request. Dropping the future stops the model before its next picture, candidate or
    /// token.
    ///
    /// # Errors
    /// When the queue is full, the thread ended, the request is invalid, or the model fails.
    pub async fn ask(&self, request: Request) -> Result<Answer, AskError> {
        self.ask_one(request, None).await
    }

    /// As [`Handle::ask`], with each piece of the answer sent as soon as it is known. Dropping
    /// their receiver stops the model; not reading from it does not.
    ///
    /// # Errors
    /// As [`Handle::ask`].
    pub async fn ask_streaming(
        &self,
        request: Request,
        pieces: mpsc::Sender<Piece>,
    ) -> Result<Answer, AskError> {
        self.ask_one(request, Some(pieces)).await
    }

    async fn ask_one(
        &self,
        request: Request,
        pieces: Option<mpsc::Sender<Piece>>,
    ) -> Result<Answer, AskError> {
        let (replies, mut answers) = mpsc::channel(1);
        self.jobs
            .try_send(Job {
                requests: vec![request],
                pieces,
                replies,
            })
            .map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => AskError::Busy,
                mpsc::error::TrySendError::Closed(_) => AskError::Stopped,
            })?;
        Ok(answers.recv().await.ok_or(AskError::Stopped)??)
    }

    /// Resolves when the thread has ended. While a handle is left, that happens only when the
    /// engine panicked.
    pub async fn ended(&self) {
        self.jobs.closed().await;
    }

    /// Asks several requests in a row. Waiting for the first answer includes waiting for room in
    /// the queue.
    pub fn ask_each(&self, requests: Vec<Request>) -> Answers {
        let (replies, answers) = mpsc::channel(requests.len().max(1));
        let jobs = self.jobs.clone();
        let queued = async move {
            // If the thread has ended, the replies are closed, which ends the answers.
            let _ = jobs
                .send(Job {
                    requests,
                    pieces: None,
                    replies,
                })
                .await;
        };
        Answers {
            queued: Some(queued.boxed()),
            answers,
        }
    }
}

/// The answers to several requests; dropping it cancels those that are left.
pub struct Answers {
    /// Set until the job is in the queue.
    queued: Option<BoxFuture<'static, ()>>,
    answers: mpsc::Receiver<Result<Answer, VlmError>>,
}

impl Answers {
    /// The next answer, in the order of the requests; `None` after the last one, or when the thread
    /// ended. Cancel safe: the future may be dropped and this called again.
    pub async fn next(&mut self) -> Option<Result<Answer, VlmError>> {
        if let Some(queued) = &mut self.queued {
            queued.await;
            self.queued = None;
        }
        self.answers.recv().await
    }
}

impl Inference {
    /// Answers until the last [`Handle`] is gone. Blocks.
    pub fn run(mut self) {
        while let Some(job) = self.jobs.blocking_recv() {
            for request in &job.requests {
                if job.replies.is_closed() {
                    break;
                }
                self.answer(&job, request);
            }
        }
    }

    /// As [`Inference::run`], but as a task: each answer takes `latency`.
    #[cfg(test)]
    pub(crate) async fn run_simulated(mut self, mut latency: impl FnMut() -> std::time::Duration) {
        while let Some(job) = self.jobs.recv().await {
            for request in &job.requests {
                if job.replies.is_closed() {
                    break;
                }
                tokio::time::sleep(latency()).await;
                self.answer(&job, request);
            }
        }
    }

    fn answer(&mut self, job: &Job, request: &Request) {
        let answer = self.model.answer(request, &mut CallerSink(job));
        // There is room for every answer, so this fails only when the caller gave up.
        let _ = job.replies.try_send(answer);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use vlm::answer::{Candidate, Confidence, ConfidenceSource, FinishReason, Timings, Token};

    use super::*;

    /// Answers every request with the text and probability that a function returns.
    pub(crate) struct Scripted {
        identity: Identity,
        script: ScriptFn,
    }

    /// Identity of the scripted model.
    pub(crate) fn identity() -> Identity {
        Identity {
            name: "scripted".into(),
            sha256: "00".into(),
            precision: "fp32".into(),
            backend: "tract".into(),
            execution_provider: "tract".into(),
            load: Duration::ZERO,
        }
    }

    type ScriptFn = Box<dyn FnMut(&Request) -> (String, f64) + Send>;

    impl Scripted {
        pub(crate) fn new(script: impl FnMut(&Request) -> (String, f64) + Send + 'static) -> Self {
            Scripted {
                identity: identity(),
                script: Box::new(script),
            }
        }
    }

    impl Answerer for Scripted {
        fn identity(&self) -> &Identity {
            &self.identity
        }

        fn answer(&mut self, request: &Request, sink: &mut dyn Sink) -> Result<Answer, VlmError> {
            let (text, p) = (self.script)(request);
            let token = Token {
                id: 1,
                text: text.clone(),
                logprob: p.ln() as f32,
                top: Vec::new(),
            };
            sink.piece(&Piece {
                text: text.clone(),
                tokens: vec![token.clone()],
            });
            Ok(Answer {
                text: text.clone(),
                finish_reason: FinishReason::Stop,
                tokens: vec![token],
                candidates: vec![Candidate {
                    text,
                    score: 0.0,
                    probability: p,
                }],
                confidence: Confidence {
                    p,
                    source: ConfidenceSource::Candidates,
                },
                prompt_tokens: 81,
                timings: Timings::default(),
                trace: None,
            })
        }
    }

    #[tokio::test]
    async fn answers_in_order_and_ends_with_the_last_handle() {
        let mut n = 0;
        let (handle, inference) = channel(Scripted::new(move |_| {
            n += 1;
            (n.to_string(), 0.5)
        }));
        let thread = std::thread::spawn(move || inference.run());
        let mut answers = handle.ask_each(vec![Request::default(), Request::default()]);
        assert_eq!(
            answers.next().await.expect("first").expect("answered").text,
            "1"
        );
        assert_eq!(
            answers
                .next()
                .await
                .expect("second")
                .expect("answered")
                .text,
            "2"
        );
        assert!(answers.next().await.is_none());
        let (pieces, mut received) = pieces(&Request::default());
        assert_eq!(
            handle
                .ask_streaming(Request::default(), pieces)
                .await
                .expect("answered")
                .text,
            "3"
        );
        assert_eq!(received.recv().await.expect("a piece").text, "3");
        drop(handle);
        thread.join().expect("ends");
    }

    /// Sends the same word as a piece until `max_new_tokens`.
    struct Talker(Scripted);

    impl Answerer for Talker {
        fn identity(&self) -> &Identity {
            self.0.identity()
        }

        fn answer(&mut self, request: &Request, sink: &mut dyn Sink) -> Result<Answer, VlmError> {
            let piece = Piece {
                text: "word ".into(),
                tokens: Vec::new(),
            };
            for _ in 1..request.max_new_tokens {
                sink.piece(&piece);
                if sink.is_cancelled() {
                    break;
                }
            }
            self.0.answer(request, sink)
        }
    }

    #[tokio::test]
    async fn a_caller_that_does_not_read_blocks_no_other() {
        let (handle, inference) = channel(Talker(Scripted::new(|_| ("end".into(), 0.5))));
        let thread = std::thread::spawn(move || inference.run());
        let long = Request {
            max_new_tokens: 10_000,
            ..Request::default()
        };
        let (pieces, mut unread) = pieces(&long);
        assert_eq!(
            handle
                .ask_streaming(long, pieces)
                .await
                .expect("an answer although no piece is read")
                .text,
            "end"
        );
        assert_eq!(
            handle
                .ask(Request::default())
                .await
                .expect("an answer to the next request")
                .text,
            "end"
        );
        let mut read = 0;
        while unread.recv().await.is_some() {
            read += 1;
        }
        assert_eq!(read, 10_000, "a late reader receives every piece");
        drop(handle);
        thread.join().expect("ends");
    }

    #[tokio::test]
    async fn a_full_queue_is_busy_and_an_ended_thread_is_stopped() {
        let (handle, inference) = channel(Scripted::new(|_| ("yes".into(), 0.5)));
        let mut waiting: Vec<_> = (0..QUEUE)
            .map(|_| handle.ask_each(vec![Request::default()]))
            .collect();
        for answers in &mut waiting {
            assert!(
                answers.next().now_or_never().is_none(),
                "the request is queued, and not answered yet"
            );
        }
        assert!(matches!(
            handle.ask(Request::default()).await,
            Err(AskError::Busy)
        ));
        drop((waiting, inference));
        assert!(matches!(
            handle.ask(Request::default()).await,
            Err(AskError::Stopped)
        ));
    }
}
