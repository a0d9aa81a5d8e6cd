//! Tasks that end when they are asked to.

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// A task with a switch that stops it.
pub(super) struct Stoppable {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Stoppable {
    /// Spawns what `task` makes of a future that resolves when it is to stop.
    pub(super) fn spawn<F: Future<Output = ()> + Send + 'static>(
        task: impl FnOnce(BoxFuture<'static, ()>) -> F,
    ) -> Stoppable {
        let (stop, stopped) = oneshot::channel();
        // A sender that is gone means that the agent is, which is a stop too.
        Stoppable {
            stop,
            task: tokio::spawn(task(stopped.map(|_| ()).boxed())),
        }
    }

    /// The task, to see it end.
    pub(super) fn task(&mut self) -> &mut JoinHandle<()> {
        &mut self.task
    }

    /// Stops the task; what it returns resolves when the task has ended.
    pub(super) fn stop(self) -> JoinHandle<()> {
        // A task that has ended already does not receive it.
        let _ = self.stop.send(());
        self.task
    }
}

/// Resolves when the task ends, which it should not do by itself; never where there is no task.
pub(super) async fn ended_early(task: Option<&mut JoinHandle<()>>) {
    match task {
        Some(task) => _ = task.await,
        None => std::future::pending().await,
    }
}

/// Resolves when a task has ended, as one that [`ended_early`] saw already has.
pub(super) async fn joined(task: JoinHandle<()>) {
    if !task.is_finished() {
        // How it ended makes no difference any more.
        let _ = task.await;
    }
}
