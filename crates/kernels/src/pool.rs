//! Threads that share the work of one operation.
//!
//! Tasks are claimed one by one, so a thread that the system has put aside costs nothing but the
//! task it was in. Workers wait for the next operation with a bounded spin, then sleep: they are
//! awake between the operations of a pass and asleep between requests.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::thread::JoinHandle;

/// Looks at the work word before a worker goes to sleep: some tens of microseconds.
const N_SPINS: usize = 4_000;
/// Looks before a waiting caller gives its time slice away.
const N_SPINS_BEFORE_YIELD: usize = 1_000;

/// The work word: tasks in the upper half, the next task to claim in the lower.
const TASK_BITS: u32 = 32;

/// Parts of a share that are claimed one by one.
const PARTS_PER_SHARE: usize = 8;

/// The next item of a share that nobody has claimed, in a cache line of its own.
#[repr(align(64))]
struct Share {
    next: AtomicUsize,
}

type Task<'a> = &'a (dyn Fn(usize) + Sync);

struct Shared {
    /// Number of tasks << 32 | next task. Zero means no work.
    word: AtomicU64,
    /// A thin pointer to the fat reference of the running operation.
    task: AtomicPtr<Task<'static>>,
    n_done: AtomicUsize,
    has_panicked: AtomicBool,
    n_sleeping: AtomicUsize,
    is_stopping: AtomicBool,
}

/// A pool of threads. The calling thread works too.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// One for each thread.
    shares: Vec<Share>,
    /// One operation at a time; a second caller works alone.
    is_running: Mutex<()>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("n_threads", &self.n_threads()).finish()
    }
}

impl Pool {
    /// A pool of `n_threads` threads, the caller's included. It has fewer when the system gives
    /// no more.
    pub fn new(n_threads: usize) -> Self {
        let shared = Arc::new(Shared {
            word: AtomicU64::new(0),
            task: AtomicPtr::new(std::ptr::null_mut()),
            n_done: AtomicUsize::new(0),
            has_panicked: AtomicBool::new(false),
            n_sleeping: AtomicUsize::new(0),
            is_stopping: AtomicBool::new(false),
        });
        let spawn = |idx: usize| {
            let shared = shared.clone();
            let name = format!("kernels-{idx}");
            std::thread::Builder::new().name(name).spawn(move || shared.work()).ok()
        };
        let workers: Vec<JoinHandle<()>> = (1..n_threads.max(1)).map_while(spawn).collect();
        let shares = (0..=workers.len()).map(|_| Share { next: AtomicUsize::new(0) }).collect();
        Self { shared, workers, shares, is_running: Mutex::new(()) }
    }

    /// A pool with as many threads as `SATEEN_THREADS` says, else `n_threads`, or when that is 0 as many as the
    /// machine has cores for this process.
    pub fn for_this_machine(n_threads: usize) -> Self {
        let wanted = std::env::var("SATEEN_THREADS").ok().and_then(|n| n.parse().ok());
        let wanted = wanted.unwrap_or(n_threads);
        Self::new(if (1..=256).contains(&wanted) { wanted } else { n_cores() })
    }

    /// Number of threads, the caller's included.
    pub fn n_threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// [`run`](Self::run) where that pays, else all tasks one after the other on this thread.
    ///
    /// # Panics
    /// When a task panics.
    pub(crate) fn run_if(&self, pays: bool, n_tasks: usize, task: Task<'_>) {
        if pays { self.run(n_tasks, task) } else { (0..n_tasks).for_each(task) }
    }

    /// Calls `task` once for each number below `n_tasks`, from any thread in any order, and
    /// returns when all calls have.
    ///
    /// # Panics
    /// When a task panics.
    pub fn run(&self, n_tasks: usize, task: Task<'_>) {
        let alone = self.workers.is_empty() || n_tasks <= 1 || n_tasks >= 1 << 31;
        let Some(_guard) = (if alone { None } else { self.claim() }) else {
            (0..n_tasks).for_each(task);
            return;
        };
        self.run_together(n_tasks, task);
    }

    /// Calls `work(items, worker)` until all items below `n_items` have been worked on, each once. A thread
    /// goes through a contiguous share in order, so that what it reads is a stream; when it is through, it
    /// helps with the shares of others. `worker`, below the number of threads, is not the same in two calls
    /// at a time.
    ///
    /// # Panics
    /// When a call panics.
    pub(crate) fn run_shares(&self, n_items: usize, work: &(dyn Fn(Range<usize>, usize) + Sync)) {
        let n_shares = self.shares.len().min(n_items);
        let alone = n_shares <= 1;
        let Some(_guard) = (if alone { None } else { self.claim() }) else {
            work(0..n_items, 0);
            return;
        };
        let start = |share: usize| share * n_items / n_shares;
        for (idx, share) in self.shares[..n_shares].iter().enumerate() {
            // Threads see it by the claims of their tasks, which come after.
            share.next.store(start(idx), Ordering::Relaxed);
        }
        self.run_together(n_shares, &|worker| {
            for share in (worker..n_shares).chain(0..worker) {
                let end = start(share + 1);
                let n_together = (end - start(share)).div_ceil(PARTS_PER_SHARE);
                loop {
                    let first = self.shares[share].next.fetch_add(n_together, Ordering::Relaxed);
                    if first >= end {
                        break;
                    }
                    work(first..end.min(first + n_together), worker);
                }
            }
        });
    }

    /// The right to use the threads, unless another caller has it.
    fn claim(&self) -> Option<MutexGuard<'_, ()>> {
        match self.is_running.try_lock() {
            Ok(guard) => Some(guard),
            // It guards nothing that a panic could leave half done: operations end before they panic.
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// What [`run`](Self::run) does, for the one caller at a time that may.
    fn run_together(&self, n_tasks: usize, task: Task<'_>) {
        let shared = &*self.shared;
        let mut task: Task<'_> = task;
        // Workers see the task only through a claim in the word below, and every claimed task is
        // counted in `n_done`, for which this call waits: the reference outlives all its uses.
        let pointer = std::ptr::from_mut(&mut task).cast::<Task<'static>>();
        shared.task.store(pointer, Ordering::Relaxed);
        shared.n_done.store(0, Ordering::Relaxed);
        shared.word.store((n_tasks as u64) << TASK_BITS, Ordering::SeqCst);
        if shared.n_sleeping.load(Ordering::SeqCst) > 0 {
            self.workers.iter().for_each(|worker| worker.thread().unpark());
        }
        shared.claim_all();
        let mut n_looks = 0;
        while shared.n_done.load(Ordering::Acquire) < n_tasks {
            n_looks += 1;
            if n_looks > N_SPINS_BEFORE_YIELD {
                std::thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
        shared.word.store(0, Ordering::Relaxed);
        assert!(!shared.has_panicked.swap(false, Ordering::Relaxed), "a kernel task panicked");
    }
}

/// Cores that this process may use. Two hardware threads of a core share its arithmetic, and each makes the
/// other late.
fn n_cores() -> usize {
    let allowed = std::thread::available_parallelism().map_or(1, usize::from);
    allowed.min(num_cpus::get_physical()).max(1)
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.is_stopping.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // Workers catch the panics of their tasks, so there is nothing to learn here.
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// Claims and runs tasks until there are none left.
    fn claim_all(&self) {
        while has_work(self.word.load(Ordering::Relaxed)) {
            let word = self.word.fetch_add(1, Ordering::AcqRel);
            if !has_work(word) {
                return;
            }
            // SAFETY: the claimed task belongs to the operation whose pointer is stored: the
            // caller of `run` does not return, and stores no other, before `n_done` has counted
            // this task. The acquire of the claim pairs with the store of the word in `run`.
            let task: Task<'static> = unsafe { *self.task.load(Ordering::Relaxed) };
            let idx = (word & u64::from(u32::MAX)) as usize;
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| task(idx))) {
                self.has_panicked.store(true, Ordering::Relaxed);
                // What it carries may panic again when it is dropped, and nothing may leave this loop before the
                // task is counted.
                std::mem::forget(panic);
            }
            self.n_done.fetch_add(1, Ordering::Release);
        }
    }

    fn work(&self) {
        while !self.is_stopping.load(Ordering::Relaxed) {
            self.claim_all();
            let is_wanted =
                || has_work(self.word.load(Ordering::Relaxed)) || self.is_stopping.load(Ordering::Relaxed);
            let spin = |_| {
                std::hint::spin_loop();
                is_wanted()
            };
            if (0..N_SPINS).any(spin) {
                continue;
            }
            self.n_sleeping.fetch_add(1, Ordering::SeqCst);
            // Seen again after the count went up, so that no wake-up falls between the two.
            if !has_work(self.word.load(Ordering::SeqCst)) && !self.is_stopping.load(Ordering::SeqCst) {
                std::thread::park();
            }
            self.n_sleeping.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

fn has_work(word: u64) -> bool {
    (word & u64::from(u32::MAX)) < word >> TASK_BITS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once() {
        for n_threads in [1, 2, 3, 8] {
            let pool = Pool::new(n_threads);
            for n_tasks in [0, 1, 2, 7, 64, 1000] {
                let counts: Vec<AtomicUsize> = (0..n_tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(n_tasks, &|idx| {
                    counts[idx].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn every_item_of_a_share_is_worked_on_once_and_by_one_worker_at_a_time() {
        for n_threads in [1, 2, 3, 8] {
            let pool = Pool::new(n_threads);
            for n_items in [0, 1, 2, 7, 64, 1000] {
                let counts: Vec<AtomicUsize> = (0..n_items).map(|_| AtomicUsize::new(0)).collect();
                let busy: Vec<AtomicBool> = (0..n_threads).map(|_| AtomicBool::new(false)).collect();
                pool.run_shares(n_items, &|items, worker| {
                    assert!(!busy[worker].swap(true, Ordering::SeqCst), "two calls of one worker");
                    // The first share takes long, so that others help.
                    if items.start == 0 {
                        std::thread::yield_now();
                    }
                    items.for_each(|item| {
                        counts[item].fetch_add(1, Ordering::Relaxed);
                    });
                    busy[worker].store(false, Ordering::SeqCst);
                });
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn many_short_operations_in_a_row() {
        let pool = Pool::new(4);
        let sum = AtomicUsize::new(0);
        for n_tasks in (0..20_000).map(|n| n % 9) {
            pool.run(n_tasks, &|idx| {
                sum.fetch_add(idx + 1, Ordering::Relaxed);
            });
        }
        let expected: usize = (0..20_000).map(|n| (n % 9) * (n % 9 + 1) / 2).sum();
        assert_eq!(sum.into_inner(), expected);
    }

    #[test]
    fn two_callers_share_a_pool() {
        let pool = Pool::new(3);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..2_000 {
                        let sum = AtomicUsize::new(0);
                        pool.run(5, &|idx| {
                            sum.fetch_add(idx, Ordering::Relaxed);
                        });
                        assert_eq!(sum.into_inner(), 10);
                    }
                });
            }
        });
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_survives() {
        let pool = Pool::new(2);
        let panicking =
            catch_unwind(AssertUnwindSafe(|| pool.run(8, &|idx| assert_ne!(idx, 5, "task five"))));
        assert!(panicking.is_err());
        let n = AtomicUsize::new(0);
        pool.run(8, &|_| {
            n.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(n.into_inner(), 8);
        // And not as one thread: two tasks that wait for each other both end.
        let barrier = std::sync::Barrier::new(2);
        pool.run(2, &|_| {
            barrier.wait();
        });
    }

    /// A panic whose message panics when it is dropped ends the operation all the same.
    #[test]
    fn a_panic_that_panics_again_is_one_panic() {
        struct Vicious;
        impl Drop for Vicious {
            fn drop(&mut self) {
                assert!(std::thread::panicking(), "dropped by whoever caught it");
            }
        }
        let pool = Pool::new(3);
        for _ in 0..20 {
            let task = |idx: usize| {
                if idx.is_multiple_of(3) {
                    std::panic::panic_any(Vicious);
                }
            };
            let caught = catch_unwind(AssertUnwindSafe(|| pool.run(9, &task)));
            assert!(
                caught.is_err_and(|panic| panic.downcast_ref::<&str>() == Some(&"a kernel task panicked"))
            );
        }
    }

    #[test]
    fn sleeping_workers_wake_up() {
        let pool = Pool::new(2);
        for _ in 0..20 {
            while pool.shared.n_sleeping.load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
            let n = AtomicUsize::new(0);
            pool.run(64, &|_| {
                n.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(n.into_inner(), 64);
        }
    }
}
