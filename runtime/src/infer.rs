//! The inference thread: owns the model, answers one request at a time, in the order they came.
//!
//! The model is busy for long and needs `&mut`, so it has a thread of its own; everyone else holds
//! a [`Handle`]. A camera asks all its rules about one frame in one job, so that they share the
//! frame's prefix in the model's cache.
//!
//! The thread never waits for an asker: answers and their pieces go into queues with room for all
//! of them, which is what one answer holds at most (`max_new_tokens`, and the model's context). A
//! client that reads slowly, or not at all, costs that memory and stops nobody.

use firmware_config::agent;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;
use vlm::answer::Piece;
use vlm::{Answer, BackendChoice, Identity, Options, Request, Sink, Vlm, VlmError};

/// Jobs that wait for the thread. Past it a request is told [`AskError::Busy`]; a camera waits, and
/// its frames with it.
pub const QUEUE: usize = 16;

/// More than any context has tokens.
const PIECES_MAX: usize = 1 << 20;

/// How the configuration's bundle is run.
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

/// What answers: a [`Vlm`], or a stand-in of a test.
pub trait Answerer: Send {
    /// Which model it is.
    fn identity(&self) -> &Identity;

    /// Answers one request, piece by piece, until the sink cancels.
    ///
    /// # Errors
    /// When the request cannot be put to the model, or the model fails.
    fn answer(&mut self, request: &Request, sink: &mut dyn Sink) -> Result<Answer, VlmError>;

    /// Length of a text in tokens.
    fn token_count(&self, text: &str) -> usize;
}

impl Answerer for Vlm {
    fn identity(&self) -> &Identity {
        Vlm::identity(self)
    }

    fn answer(&mut self, request: &Request, sink: &mut dyn Sink) -> Result<Answer, VlmError> {
        self.ask_streaming(request, sink)
    }

    fn token_count(&self, text: &str) -> usize {
        Vlm::token_count(self, text)
    }
}

/// Why a request was not answered.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Too many requests wait already.
    #[error("{QUEUE} requests wait for the model already; try again later")]
    Busy,
    /// The thread ended.
    #[error("the model was stopped")]
    Stopped,
    /// The model says no.
    #[error(transparent)]
    Model(#[from] VlmError),
}

/// A way to ask the model; cheap to clone. The thread ends when the last handle is dropped.
#[derive(Debug, Clone)]
pub struct Handle {
    jobs: mpsc::Sender<Job>,
    identity: Identity,
}

/// Requests to be answered one after another, without others in between.
#[derive(Debug)]
struct Job {
    requests: Vec<Request>,
    /// Where pieces of the answer go as they come.
    pieces: Option<mpsc::Sender<Piece>>,
    /// Has room for every answer; closed by an asker who lost interest.
    replies: mpsc::Sender<Result<Answer, VlmError>>,
}

/// Sends an answer's pieces to the asker; cancelled when the asker is gone.
struct AskerSink<'a>(&'a Job);

impl Sink for AskerSink<'_> {
    fn piece(&mut self, piece: &Piece) {
        if let Some(pieces) = &self.0.pieces {
            // There is room for it; a closed receiver cancels.
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
    // A piece has a token at least, and what is left at the end is one more; a chosen candidate is
    // one piece.
    mpsc::channel(request.max_new_tokens.saturating_add(1).min(PIECES_MAX))
}

/// The two sides of one model.
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

    /// Asks one request; dropping the future stops the model before its next picture, candidate or
    /// token.
    ///
    /// # Errors
    /// When the queue is full, the thread ended, or the model does not answer.
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

    /// Resolves when the thread has ended, which it does before its last handle only when the
    /// engine panicked.
    pub async fn ended(&self) {
        self.jobs.closed().await;
    }

    /// Asks several requests in a row. Waits for a place in the queue with the first answer.
    pub fn ask_each(&self, requests: Vec<Request>) -> Answers {
        let (replies, answers) = mpsc::channel(requests.len().max(1));
        let jobs = self.jobs.clone();
        let queued = async move {
            // Without a thread the replies are closed at once, which says it.
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

/// The answers to several requests; dropping it takes back those not begun.
pub struct Answers {
    /// Until there is a place in the queue.
    queued: Option<BoxFuture<'static, ()>>,
    answers: mpsc::Receiver<Result<Answer, VlmError>>,
}

impl Answers {
    /// The next answer, in the order of the requests; fewer come when the thread ends. May be
    /// dropped and called again.
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

    /// As [`Inference::run`], as a task: each answer takes `latency`.
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
        let answer = self.model.answer(request, &mut AskerSink(job));
        // An asker who lost interest does not stop the thread, and there is room for every answer.
        let _ = job.replies.try_send(answer);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use vlm::answer::{Candidate, Confidence, ConfidenceSource, FinishReason, Timings, Token};

    use super::*;

    /// Says, for any request with candidates, the first of them with a fixed probability.
    pub(crate) struct Scripted {
        identity: Identity,
        script: Script,
    }

    /// Which model a script stands for.
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

    type Script = Box<dyn FnMut(&Request) -> (String, f64) + Send>;

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

        fn token_count(&self, text: &str) -> usize {
            text.len()
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

    /// Says the same word as often as it may.
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

        fn token_count(&self, text: &str) -> usize {
            self.0.token_count(text)
        }
    }

    #[tokio::test]
    async fn an_asker_who_does_not_read_stops_nobody() {
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
                .expect("answered, with no piece read")
                .text,
            "end"
        );
        assert_eq!(
            handle
                .ask(Request::default())
                .await
                .expect("the next one too")
                .text,
            "end"
        );
        let mut read = 0;
        while unread.recv().await.is_some() {
            read += 1;
        }
        assert_eq!(read, 10_000, "and nothing is lost to whoever reads late");
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
                "it is queued, and not answered"
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
