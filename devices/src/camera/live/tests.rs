#![allow(clippy::unwrap_used)]

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};

use super::*;

/// Images of one byte, as the test sends them.
struct ScriptedReader(Receiver<Result<u8, &'static str>>);

impl ImageReader for ScriptedReader {
    type Error = &'static str;

    fn next_image(&mut self) -> Result<Option<FrameImage>, &'static str> {
        let sent = self.0.recv().ok().transpose()?;
        Ok(sent.map(|byte| FrameImage::Encoded(vec![byte].into())))
    }
}

/// Notes what it is asked for. The reader's stream ends when it is killed.
struct ScriptedProducer {
    images: Option<Sender<Result<u8, &'static str>>>,
    calls: Arc<Mutex<Vec<String>>>,
}

impl Producer for ScriptedProducer {
    type Reader = ScriptedReader;

    fn kill(&mut self) {
        self.images = None;
        self.calls.lock().unwrap().push("kill".to_owned());
    }

    fn finish(
        &mut self,
        read: Result<(), &'static str>,
        delivered: bool,
    ) -> Result<(), CaptureError> {
        let call = format!("finish({read:?}, {delivered})");
        self.calls.lock().unwrap().push(call);
        // As a live camera: one that ends without an error of its own was stopped.
        read.map_err(|_| CaptureError::Stopped)
    }
}

struct Rig {
    source: LiveSource<ScriptedProducer>,
    calls: Arc<Mutex<Vec<String>>>,
    stop: Stop,
    /// Before the source was started.
    before: Instant,
    /// After the source was started.
    after: Instant,
}

const WALL_TIME: SystemTime = SystemTime::UNIX_EPOCH;
const STALL_AFTER: Duration = Duration::from_secs(3);
const NEWEST: Delivery = Delivery::Newest {
    stall_after: STALL_AFTER,
};

impl Rig {
    fn start(delivery: Delivery, period: Duration) -> Self {
        let (images, sent) = channel();
        let (calls, stop) = (Arc::default(), Stop::new());
        let producer = ScriptedProducer {
            images: Some(images),
            calls: Arc::clone(&calls),
        };
        let before = Instant::now();
        let source = LiveSource::start(
            "test".to_owned(),
            producer,
            ScriptedReader(sent),
            delivery,
            period,
            &stop,
        );
        Self {
            source,
            calls,
            stop,
            before,
            after: Instant::now(),
        }
    }

    /// Lets the reader read one image.
    fn send(&self, image: Result<u8, &'static str>) {
        let images = self.source.producer.images.as_ref().expect("not killed");
        images.send(image).expect("the reader is reading");
    }

    /// The end of the stream.
    fn hang_up(&mut self) {
        self.source.producer.images = None;
    }

    /// Polls at `now` until the reader has brought something.
    fn poll(&mut self, now: Instant) -> Result<Poll, CaptureError> {
        loop {
            match self.source.poll(now, WALL_TIME) {
                Ok(Poll::Pending { early }) if early.is_zero() => {
                    self.source.slot.wait(Duration::from_secs(3600));
                }
                other => return other,
            }
        }
    }

    /// The byte of the image that is ready at `now`.
    fn image(&mut self, now: Instant) -> u8 {
        match self.poll(now) {
            Ok(Poll::Ready(Frame {
                image: FrameImage::Encoded(bytes),
                ..
            })) => bytes[0],
            other => panic!("{other:?}, expected an image"),
        }
    }

    fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }
}

#[test]
fn a_live_source_hands_out_its_newest_image_with_the_time_it_was_read() {
    let mut rig = Rig::start(NEWEST, Duration::ZERO);
    let earliest = SystemTime::now();
    for n in 1..=3 {
        rig.send(Ok(n));
    }
    while rig.source.superseded() < 2 {
        thread::yield_now();
    }
    let now = rig.after;
    match rig.poll(now) {
        Ok(Poll::Ready(frame)) => {
            assert!(matches!(&frame.image, FrameImage::Encoded(bytes) if bytes[..] == [3]));
            assert!((earliest..=SystemTime::now()).contains(&frame.captured_at));
        }
        other => panic!("{other:?}, expected an image"),
    }
    assert_eq!(rig.source.superseded(), 2);
}

#[test]
fn a_lossless_source_hands_out_every_image_and_then_its_end() {
    let mut rig = Rig::start(Delivery::Lossless, Duration::ZERO);
    for n in 1..=3 {
        rig.send(Ok(n));
    }
    rig.hang_up();
    let day = rig.after + Duration::from_secs(86_400);
    for n in 1..=3 {
        assert_eq!(rig.image(day), n, "it is never too late");
    }
    for _ in 0..2 {
        assert!(matches!(rig.poll(day), Ok(Poll::Ended)));
    }
    assert_eq!(rig.calls(), ["finish(Ok(()), true)"]);
    assert_eq!(rig.source.superseded(), 0);
}

#[test]
fn images_are_handed_out_when_they_are_due() {
    let period = Duration::from_millis(100);
    let mut rig = Rig::start(Delivery::Lossless, period);
    rig.send(Ok(1));
    rig.send(Ok(2));
    let start = rig.after;
    assert_eq!(rig.image(start), 1);
    let early = Duration::from_millis(1);
    match rig.poll(start + period - early) {
        Ok(Poll::Pending { early: found }) => assert_eq!(found, early),
        other => panic!("{other:?}, expected to wait"),
    }
    assert_eq!(rig.image(start + period), 2);
}

#[test]
fn a_live_source_that_falls_silent_has_stalled_and_is_killed() {
    for delivers in [false, true] {
        let mut rig = Rig::start(NEWEST, Duration::ZERO);
        let mut expected = CONNECT_TIMEOUT_MIN;
        if delivers {
            rig.send(Ok(1));
            rig.image(rig.after);
            expected = STALL_AFTER;
        }
        let last = Instant::now();
        let early = rig.before + expected - Duration::from_nanos(1);
        let pending = rig.source.poll(early, WALL_TIME);
        assert!(matches!(pending, Ok(Poll::Pending { .. })), "{pending:?}");
        assert!(rig.calls().is_empty());

        match rig.source.poll(last + expected, WALL_TIME) {
            Err(CaptureError::Stalled { silent, limit, .. }) => {
                assert_eq!(limit, expected);
                assert!(silent >= limit, "{silent:?}");
            }
            other => panic!("{other:?}, expected a stall"),
        }
        assert_eq!(rig.calls(), ["kill"]);
        assert!(matches!(rig.poll(last), Ok(Poll::Ended)));
    }
}

#[test]
fn a_source_whose_reader_fails_is_finished_once_after_its_last_image() {
    let mut rig = Rig::start(Delivery::Lossless, Duration::ZERO);
    rig.send(Ok(1));
    rig.send(Err("broken"));
    let now = rig.after;
    assert_eq!(rig.image(now), 1);
    assert!(matches!(rig.poll(now), Err(CaptureError::Stopped)));
    assert!(matches!(rig.poll(now), Ok(Poll::Ended)));
    assert_eq!(rig.calls(), ["finish(Err(\"broken\"), true)"]);

    let mut rig = Rig::start(NEWEST, Duration::ZERO);
    rig.hang_up();
    assert!(matches!(rig.poll(rig.after), Ok(Poll::Ended)));
    assert_eq!(rig.calls(), ["finish(Ok(()), false)"]);
}

#[test]
fn a_blocked_caller_returns_when_stopped() {
    for (delivery, period) in [
        (NEWEST, Duration::ZERO),
        (Delivery::Lossless, Duration::from_secs(3600)),
    ] {
        let mut rig = Rig::start(delivery, period);
        rig.send(Ok(1));
        assert!(matches!(rig.source.next_frame(), Ok(Some(_))));
        let stop = rig.stop.clone();
        let blocked = thread::spawn(move || rig.source.next_frame());
        stop.stop();
        let returned = blocked.join().expect("it does not panic");
        assert!(
            matches!(returned, Err(CaptureError::Stopped)),
            "{delivery:?}"
        );
    }
}

#[test]
fn a_dropped_source_kills_its_producer_and_joins_its_reader() {
    let rig = Rig::start(Delivery::Lossless, Duration::ZERO);
    // One image is in the slot, the reader blocks on the next.
    rig.send(Ok(1));
    rig.send(Ok(2));
    let slot = Arc::clone(&rig.source.slot);
    drop(rig.source);
    assert_eq!(rig.calls.lock().unwrap()[..], ["kill"]);
    assert_eq!(Arc::strong_count(&slot), 1, "the thread has ended");
}
