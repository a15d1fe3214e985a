//! A gate before what is polled too often: it opens only when something has happened inside.
//!
//! hyper asks a body again after each piece, and everything of a connection is polled whenever one part of it wakes its task;
//! an answer would drive its upstream connection several times a token, to learn each time that there is nothing. hyper's own
//! channels also wake the task that is just running, which would poll all of it once more. So what stands behind a gate is
//! polled with the gate's waker:
//!
//! | state | event | next |
//! | --- | --- | --- |
//! | `WOKEN` | poll | `POLLING`, the inside is polled |
//! | `POLLING` | the inside wakes itself | `WOKEN`, it is polled once more; the task is not woken |
//! | `POLLING` | the inside is ready and may have more | `WOKEN` |
//! | `POLLING` | the inside is ready and has no more until it is woken | `IDLE` |
//! | `POLLING` | the inside is ready, and what it gave is to leave first | `WOKEN`, the next poll is pending and wakes the task |
//! | `POLLING` | the inside is pending | `IDLE` |
//! | `IDLE` | poll | `IDLE`, pending at once |
//! | `IDLE` | the inside is woken | `WOKEN`, the task is woken |

use futures_util::task::AtomicWaker;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, Wake, Waker};

const IDLE: u8 = 0;
const POLLING: u8 = 1;
const WOKEN: u8 = 2;

/// Polls in a row of an inside that keeps waking itself; then the runtime's other tasks have their turn.
const MAX_ROUNDS: usize = 32;

/// What is known of an inside that was ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum More {
    /// It may be ready again at once.
    Perhaps,
    /// As `Perhaps`, but what it gave is not to wait for more: whoever polls writes when he finds nothing.
    Later,
    /// All that it waits for will wake it: a poll before that would find nothing.
    WhenWoken,
}

/// What is polled, behind its gate.
pub struct Gated<T> {
    gate: Arc<Gate>,
    waker: Waker,
    inner: T,
    /// The next poll finds nothing, once.
    rests: bool,
}

impl<T> Gated<T> {
    /// Open until the first poll has found nothing.
    pub fn new(inner: T) -> Self {
        let gate = Arc::new(Gate {
            state: AtomicU8::new(WOKEN),
            task: AtomicWaker::new(),
        });
        Gated {
            waker: gate.clone().into(),
            gate,
            inner,
            rests: false,
        }
    }

    /// The inside.
    pub fn get_ref(&self) -> &T {
        &self.inner
    }

    /// Polls the inside by `poll`, if it has been woken since it was last pending.
    pub fn poll_with<O>(
        &mut self,
        cx: &mut Context<'_>,
        mut poll: impl FnMut(&mut T, &mut Context<'_>) -> Poll<(O, More)>,
    ) -> Poll<O> {
        // Registered before the state is read: a wake in between is either seen here or reaches this task.
        self.gate.task.register(cx.waker());
        if self.gate.state.load(Ordering::Acquire) == IDLE {
            return Poll::Pending;
        }
        if std::mem::take(&mut self.rests) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        for _ in 0..MAX_ROUNDS {
            self.gate.state.store(POLLING, Ordering::Release);
            match poll(&mut self.inner, &mut Context::from_waker(&self.waker)) {
                Poll::Ready((ready, more @ (More::Perhaps | More::Later))) => {
                    self.rests = more == More::Later;
                    self.gate.state.store(WOKEN, Ordering::Release);
                    return Poll::Ready(ready);
                }
                Poll::Ready((ready, More::WhenWoken)) => {
                    self.gate.settles();
                    return Poll::Ready(ready);
                }
                Poll::Pending if self.gate.settles() => return Poll::Pending,
                Poll::Pending => {}
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<F: Future + Unpin> Future for Gated<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.get_mut().poll_with(cx, |inner, cx| {
            Pin::new(inner).poll(cx).map(|output| (output, More::Perhaps))
        })
    }
}

/// The state, and the task that the inside belongs to.
struct Gate {
    state: AtomicU8,
    task: AtomicWaker,
}

impl Gate {
    /// From `POLLING` to `IDLE`; false if the inside was woken meanwhile.
    fn settles(&self) -> bool {
        self.state
            .compare_exchange(POLLING, IDLE, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }
}

impl Wake for Gate {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.state.swap(WOKEN, Ordering::AcqRel) == IDLE {
            self.task.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::future::poll_fn;
    use std::sync::atomic::AtomicUsize;

    #[derive(Default)]
    struct Counter(AtomicUsize);

    impl Wake for Counter {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Polls with a waker that counts; what the inside saw.
    struct Bench {
        woken: Arc<Counter>,
        polls: usize,
        inside: Option<Waker>,
    }

    impl Bench {
        fn new() -> Self {
            Bench {
                woken: Arc::default(),
                polls: 0,
                inside: None,
            }
        }

        fn poll<O>(&mut self, gated: &mut Gated<()>, answer: impl Fn(usize, &Waker) -> Poll<(O, More)>) -> Poll<O> {
            let waker = Waker::from(self.woken.clone());
            gated.poll_with(&mut Context::from_waker(&waker), |(), cx| {
                self.polls += 1;
                self.inside = Some(cx.waker().clone());
                answer(self.polls, cx.waker())
            })
        }

        fn wakes(&self) -> usize {
            self.woken.0.load(Ordering::SeqCst)
        }
    }

    #[test]
    fn what_has_not_been_woken_is_not_polled() {
        let (mut bench, mut gated) = (Bench::new(), Gated::new(()));
        assert!(bench.poll::<()>(&mut gated, |_, _| Poll::Pending).is_pending());
        assert!(bench.poll::<()>(&mut gated, |_, _| Poll::Pending).is_pending());
        assert_eq!((bench.polls, bench.wakes()), (1, 0));
        bench.inside.clone().unwrap().wake();
        assert_eq!(bench.wakes(), 1);
        assert!(
            bench
                .poll(&mut gated, |_, _| Poll::Ready(((), More::Perhaps)))
                .is_ready()
        );
        assert!(
            bench
                .poll(&mut gated, |_, _| Poll::Ready(((), More::Perhaps)))
                .is_ready(),
            "there may be more"
        );
        assert_eq!(bench.polls, 3);
    }

    #[test]
    fn what_wakes_itself_is_polled_again_without_the_task() {
        let (mut bench, mut gated) = (Bench::new(), Gated::new(()));
        let polled = bench.poll::<()>(&mut gated, |polls, waker| {
            if polls == 1 {
                waker.wake_by_ref();
            }
            Poll::Pending
        });
        assert!(polled.is_pending());
        assert_eq!((bench.polls, bench.wakes()), (2, 0));
    }

    #[test]
    fn what_never_stops_waking_itself_gives_way() {
        let (mut bench, mut gated) = (Bench::new(), Gated::new(()));
        let polled = bench.poll::<()>(&mut gated, |_, waker| {
            waker.wake_by_ref();
            Poll::Pending
        });
        assert!(polled.is_pending());
        assert_eq!((bench.polls, bench.wakes()), (MAX_ROUNDS, 1));
    }

    #[test]
    fn what_has_no_more_is_not_polled_before_it_is_woken() {
        let (mut bench, mut gated) = (Bench::new(), Gated::new(()));
        let last = |_: usize, _: &Waker| Poll::Ready(((), More::WhenWoken));
        assert!(bench.poll(&mut gated, last).is_ready());
        assert!(bench.poll(&mut gated, last).is_pending());
        bench.inside.clone().unwrap().wake();
        assert!(bench.poll(&mut gated, last).is_ready());
        assert_eq!((bench.polls, bench.wakes()), (2, 1));
        // Woken while it was polled: that must not be lost.
        bench.inside.clone().unwrap().wake();
        let woken = bench.poll(&mut gated, |_, waker| {
            waker.wake_by_ref();
            Poll::Ready(((), More::WhenWoken))
        });
        assert!(woken.is_ready());
        assert!(bench.poll(&mut gated, last).is_ready());
    }

    #[test]
    fn what_is_to_leave_first_is_followed_by_nothing_once() {
        let (mut bench, mut gated) = (Bench::new(), Gated::new(()));
        let leaves = |_: usize, _: &Waker| Poll::Ready(((), More::Later));
        assert!(bench.poll(&mut gated, leaves).is_ready());
        assert!(bench.poll(&mut gated, leaves).is_pending());
        assert_eq!((bench.polls, bench.wakes()), (1, 1));
        assert!(bench.poll(&mut gated, leaves).is_ready());
        assert_eq!((bench.polls, bench.wakes()), (2, 1));
    }

    #[test]
    fn the_task_that_polled_last_is_woken() {
        let (mut first, mut gated) = (Bench::new(), Gated::new(()));
        assert!(first.poll::<()>(&mut gated, |_, _| Poll::Pending).is_pending());
        let mut second = Bench::new();
        assert!(second.poll::<()>(&mut gated, |_, _| Poll::Pending).is_pending());
        first.inside.clone().unwrap().wake();
        assert_eq!((first.wakes(), second.wakes()), (0, 1));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_wake_of_another_thread_is_lost() {
        let (to_inside, mut inside) = tokio::sync::mpsc::unbounded_channel::<u32>();
        let sender = std::thread::spawn(move || (0..20_000).for_each(|n| to_inside.send(n).unwrap()));
        let mut gated = Gated::new(0);
        let sum = poll_fn(|cx| {
            gated.poll_with(cx, |count, cx| {
                loop {
                    match std::task::ready!(inside.poll_recv(cx)) {
                        Some(_) => *count += 1,
                        None => return Poll::Ready((*count, More::Perhaps)),
                    }
                }
            })
        })
        .await;
        sender.join().unwrap();
        assert_eq!(sum, 20_000);
    }
}
