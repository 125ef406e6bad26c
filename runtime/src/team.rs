//! The lanes of a session that has several, and what they share.
//!
//! Lane 0 is the caller's thread. The others are threads that live as long as
//! the session and wait at the barrier between pictures. All memory of a lane
//! is its own, but for the [`Exchange`]: whatever one lane reads of another's
//! rows was put there, then all lanes met, then it was read.
//!
//! ```text
//!             caller = lane 0          lane 1 (a thread)
//!             puts the picture
//! begin ────────────┼────────────────────────┼─────────
//!             embed, norm, qkv         embed, norm, qkv
//!             puts its keys, values    puts its keys, values
//! meet  ────────────┼────────────────────────┼─────────  for each attention
//!             packs heads 0 to 2       packs heads 3 to 5
//! meet  ────────────┼────────────────────────┼─────────
//!             attention of its rows,   attention of its rows,
//!             proj, norm, fc1, fc2,    proj, norm, fc1, fc2,
//!             norm, qkv                norm, qkv
//!                   ...                      ...
//!             the class token          (waits for the next picture)
//!             answers
//! ```
//!
//! Nobody writes what another may still read: between the reading of keys and
//! values and their next writing lies the second meeting (in windows, one after
//! attention), and between the reading of packed heads and their next writing
//! the first; whoever reads f32 rows of others meets them afterwards. The locks, one for
//! each head, are therefore free when they are taken, except where lanes put
//! their rows at the same time, each beginning with another head; they are there
//! because they make sharing safe.

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use std::boxed::Box;
use std::format;
use std::panic;
use std::sync::{LockResult, PoisonError, RwLock};
use std::thread::{self, JoinHandle};

use crate::barrier::{Barrier, Broken};
use crate::block::Block;
use crate::exec::{Lane, Memory, Network};
use crate::lanes::{ExchangeSize, Part};

/// What crosses between lanes.
pub(crate) struct Exchange {
    barrier: Barrier,
    job: RwLock<Job>,
    /// Keys and values of each head, `[tokens, 2 * head_dim]`.
    heads: Vec<RwLock<Vec<u8>>>,
    /// The same in the order of this CPU.
    packed: Vec<RwLock<Block<'static>>>,
    /// Rows of f32, of the lanes that have them.
    floats: RwLock<Vec<f32>>,
    /// One operation's whole output, for an observer; grows when first used.
    observed: RwLock<Shared>,
}

/// What the caller asks of the other lanes.
struct Job {
    pixels: Vec<u8>,
    observed: bool,
}

/// An output of all lanes together.
#[derive(Default)]
pub(crate) struct Shared {
    pub(crate) codes: Vec<u8>,
    pub(crate) floats: Vec<f32>,
}

/// A lane that panics breaks the barrier, which ends all others: nobody reads
/// what it left.
fn entered<T>(lock: LockResult<T>) -> T {
    lock.unwrap_or_else(PoisonError::into_inner)
}

impl Exchange {
    fn new(lanes: usize, size: ExchangeSize) -> Exchange {
        Exchange {
            barrier: Barrier::new(lanes),
            job: RwLock::new(Job {
                pixels: vec![0; size.pixels],
                observed: false,
            }),
            heads: (0..size.heads)
                .map(|_| RwLock::new(vec![0; size.head_len]))
                .collect(),
            packed: (0..size.heads)
                .map(|_| RwLock::new(Block::owned(size.pack_len)))
                .collect(),
            floats: RwLock::new(vec![0.0; size.floats]),
            observed: RwLock::default(),
        }
    }

    /// Waits for all lanes.
    ///
    /// # Panics
    /// If one of them has panicked, which has said why: this says no more.
    pub(crate) fn meet(&self) {
        if let Err(Broken) = self.barrier.wait() {
            panic::resume_unwind(Box::new("a lane of the session has panicked"));
        }
    }

    /// Lets `write` put this lane's rows of the keys and values of a head.
    pub(crate) fn put_head(&self, head: usize, write: impl FnOnce(&mut [u8])) {
        let mut rows = entered(self.heads[head].write());
        write(&mut rows);
    }

    /// Lets `write` pack a head, which all lanes put before they met, from its
    /// rows. Each head is one lane's to pack.
    pub(crate) fn pack_head(&self, head: usize, write: impl FnOnce(&[u8], &mut [u8])) {
        let rows = entered(self.heads[head].read());
        let mut packed = entered(self.packed[head].write());
        write(&rows, &mut packed);
    }

    /// Lets `read` see a packed head, after all lanes met.
    pub(crate) fn packed_head(&self, head: usize, read: impl FnOnce(&[u8])) {
        let packed = entered(self.packed[head].read());
        read(&packed);
    }

    /// Lets `read` see the keys and values of a head, after all lanes met.
    pub(crate) fn head(&self, head: usize, read: impl FnOnce(&[u8])) {
        read(&entered(self.heads[head].read()));
    }

    /// Puts rows that this lane has at `start` of the shared ones.
    pub(crate) fn put_floats(&self, start: usize, rows: &[f32]) {
        entered(self.floats.write())[start..][..rows.len()].copy_from_slice(rows);
    }

    /// Lets `read` see the rows that were put, after all lanes met.
    pub(crate) fn floats(&self, read: impl FnOnce(&[f32])) {
        read(&entered(self.floats.read()));
    }

    /// Gathers an output of `len` elements, of which each lane has a part; lane
    /// 0 then lets `look` see it. Every lane must call this.
    pub(crate) fn observe(&self, len: usize, part: Part<'_>, look: Option<impl FnOnce(&Shared)>) {
        let mut shared = entered(self.observed.write());
        match part {
            Part::Codes { start, codes } => {
                grow(&mut shared.codes, len);
                shared.codes[start..][..codes.len()].copy_from_slice(codes);
            }
            Part::Floats { start, floats } => {
                grow(&mut shared.floats, len);
                shared.floats[start..][..floats.len()].copy_from_slice(floats);
            }
        }
        drop(shared);
        self.meet();
        if let Some(look) = look {
            let shared = entered(self.observed.read());
            look(&shared);
        }
        self.meet();
    }
}

fn grow<T: Copy + Default>(vector: &mut Vec<T>, len: usize) {
    if vector.len() < len {
        vector.resize(len, T::default());
    }
}

/// The lanes beside the caller's.
pub(crate) struct Team {
    network: Arc<Network<'static>>,
    exchange: Arc<Exchange>,
    threads: Vec<JoinHandle<()>>,
}

impl Team {
    /// Starts a thread for each lane of `network` but the first; `None` if the
    /// system refuses one.
    pub(crate) fn start(network: Network<'static>) -> Option<Team> {
        let network = Arc::new(network);
        let lanes = network.sizes.lanes;
        let exchange = Arc::new(Exchange::new(lanes, network.sizes.exchange));
        let mut team = Team {
            network,
            exchange,
            threads: Vec::with_capacity(lanes - 1),
        };
        for index in 1..lanes {
            let network = Arc::clone(&team.network);
            let exchange = Arc::clone(&team.exchange);
            let arena = Block::owned(network.sizes.arena_bytes());
            let thread = thread::Builder::new()
                .name(format!("tpvit lane {index}"))
                .spawn(move || serve(&network, &exchange, index, arena));
            match thread {
                Ok(thread) => team.threads.push(thread),
                Err(_) => return None,
            }
        }
        Some(team)
    }

    /// What the lanes read.
    pub(crate) fn network(&self) -> &Network<'static> {
        &self.network
    }

    /// What the lanes share.
    pub(crate) fn exchange(&self) -> &Exchange {
        &self.exchange
    }

    /// Runs all lanes on `pixels`; `caller` is what this thread does meanwhile.
    pub(crate) fn run(&self, pixels: &[u8], observed: bool, caller: impl FnOnce(&Exchange)) {
        let _guard = self.exchange.barrier.break_on_panic();
        let mut job = entered(self.exchange.job.write());
        job.pixels.copy_from_slice(pixels);
        job.observed = observed;
        drop(job);
        self.exchange.meet();
        caller(&self.exchange);
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        // The others wait for the next picture, or are on their way there.
        self.exchange.barrier.break_up();
        for thread in self.threads.drain(..) {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}

/// The life of a lane that is not the caller's.
fn serve(network: &Network<'_>, exchange: &Exchange, index: usize, mut arena: Block<'_>) {
    let _guard = exchange.barrier.break_on_panic();
    while exchange.barrier.wait().is_ok() {
        let job = entered(exchange.job.read());
        let mut lane = Lane {
            network,
            index,
            memory: Memory::of(&mut arena, &network.sizes),
            exchange: Some(exchange),
        };
        match job.observed {
            false => lane.forward(&job.pixels),
            true => lane.forward_observed(&job.pixels, None),
        }
    }
}
