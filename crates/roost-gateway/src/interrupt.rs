//! What may end a session from outside: its database goes away, or the node does.
//!
//! A relay is polled for every packet, and asking these futures each time would cost more than the packet. So they are
//! polled through a bell of their own: only when one of them has something to say is it asked again.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use roost_lifecycle::ClosingReason;
use tokio::sync::watch;
use tokio::time::Instant;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Interrupt {
    /// The instance is taken away.
    Closing(ClosingReason),
    /// The node wants sessions to end as soon as they are idle, and no later than this.
    Drain(Instant),
    /// The time for that is over.
    DrainOver,
}

type Source = Pin<Box<dyn Future<Output = Interrupt> + Send>>;

/// Rung by the futures, looked at by the relay.
#[derive(Debug)]
struct Bell {
    rung: AtomicBool,
    session: Mutex<Waker>,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, Ordering::Release);
        self.session.lock().unwrap_or_else(PoisonError::into_inner).wake_by_ref();
    }
}

/// Watches for interrupts at next to no cost while there is none.
pub(crate) struct Watch {
    source: Source,
    bell: Arc<Bell>,
    bell_waker: Waker,
    session: Waker,
}

impl Watch {
    /// Watches the instance's fate and the node's.
    pub(crate) fn new(
        closing: impl Future<Output = ClosingReason> + Send + 'static,
        drain: watch::Receiver<Option<Instant>>,
    ) -> Self {
        let bell = Arc::new(Bell { rung: AtomicBool::new(true), session: Mutex::new(Waker::noop().clone()) });
        Self {
            source: Box::pin(until_interrupted(closing, drain)),
            bell_waker: Waker::from(bell.clone()),
            bell,
            session: Waker::noop().clone(),
        }
    }

    /// From now on, watches only for the end of the time that a drain leaves.
    pub(crate) fn draining_until(&mut self, deadline: Instant) {
        self.source = Box::pin(async move {
            tokio::time::sleep_until(deadline).await;
            Interrupt::DrainOver
        });
        self.bell.rung.store(true, Ordering::Release);
    }

    /// An interrupt, if there is one; otherwise the task is woken when there is.
    #[inline]
    pub(crate) fn poll(&mut self, cx: &Context<'_>) -> Poll<Interrupt> {
        if !self.session.will_wake(cx.waker()) {
            self.session = cx.waker().clone();
            *self.bell.session.lock().unwrap_or_else(PoisonError::into_inner) = self.session.clone();
            self.bell.rung.store(true, Ordering::Release);
        }
        if !self.bell.rung.load(Ordering::Acquire) {
            return Poll::Pending;
        }
        // Before asking, so that a bell that rings meanwhile is not missed.
        self.bell.rung.store(false, Ordering::Release);
        self.source.as_mut().poll(&mut Context::from_waker(&self.bell_waker))
    }
}

async fn until_interrupted(
    closing: impl Future<Output = ClosingReason> + Send,
    mut drain: watch::Receiver<Option<Instant>>,
) -> Interrupt {
    let drained = async {
        match drain.wait_for(Option::is_some).await.map(|deadline| *deadline) {
            Ok(Some(deadline)) => deadline,
            // The door is gone without a drain: the node is being torn down around its sessions.
            _ => Instant::now(),
        }
    };
    tokio::select! {
        biased;
        reason = closing => Interrupt::Closing(reason),
        deadline = drained => Interrupt::Drain(deadline),
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_closing_instance_interrupts() {
        let (closing, closed) = tokio::sync::oneshot::channel();
        let (_drain, draining) = watch::channel(None);
        let mut watch = Watch::new(async { closed.await.unwrap() }, draining);
        assert!(poll_fn(|cx| Poll::Ready(watch.poll(cx))).await.is_pending());
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            closing.send(ClosingReason::Crashed).unwrap();
        });
        assert_eq!(poll_fn(|cx| watch.poll(cx)).await, Interrupt::Closing(ClosingReason::Crashed));
    }

    #[tokio::test]
    async fn a_drain_interrupts_twice() {
        let (drain, draining) = watch::channel(None);
        let mut watch = Watch::new(std::future::pending(), draining);
        assert!(poll_fn(|cx| Poll::Ready(watch.poll(cx))).await.is_pending());
        let deadline = Instant::now() + Duration::from_millis(30);
        drain.send(Some(deadline)).unwrap();
        assert_eq!(poll_fn(|cx| watch.poll(cx)).await, Interrupt::Drain(deadline));
        watch.draining_until(deadline);
        assert_eq!(poll_fn(|cx| watch.poll(cx)).await, Interrupt::DrainOver);
        assert!(Instant::now() >= deadline);
    }
}
