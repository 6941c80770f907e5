//! A small model of the lease protocol of `crates/frontend/DESIGN.md`: three replicas, two front
//! ends, an abstract Raft, clocks that drift, and steps in any order.
//!
//! ```
//! cargo run --release -- clean [SECONDS]     random walks through seven variants: no stale read
//! cargo run --release -- bugs [SECONDS]      random walks with one planted error after the other
//! cargo run --release -- directed            traces that random walks hardly find
//! cargo run --release -- bfs [SECONDS] 250 BUG ELECTIONS,WRITES,READS,RENEWALS,SESSIONS,TICKS [ends]
//!                                            every order of a few steps
//! ```

mod model;
use model::*;
use std::collections::{HashSet, VecDeque};
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

struct Rng(u64);
impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545F4914F6CDD1D)
    }
    fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n
    }
}

/// actor class of an action, for freezing (pauses, partitions)
fn class(w: &World, a: Act) -> u8 {
    use Act::*;
    match a {
        Apply(n)
        | Commit(n)
        | StepDown(n)
        | Propose(n, _)
        | AckW(n)
        | Release(n)
        | Answer(n, _)
        | LClose(n, _)
        | Remove(n, _) => n,
        Repl(l, f) | Feed(l, f) => 3 + l * 3 + f, // 3..12
        RAck(l, _, f) => 12 + l * 3 + f,          // 12..21
        DownD(i) => 21 + w.streams.iter().find(|s| s.sid == i).unwrap().slot,
        UpD(i) => {
            let s = w.streams.iter().find(|s| s.sid == i).unwrap();
            // What an ended stream has yet to say may come much later than what follows it.
            let ended = s.up.back() == Some(&Up::End);
            if ended { 40 + s.slot } else { 23 + s.slot }
        }
        AskRenew(f, _) | Connect(f, _, _) | CloseUp(f) => 25 + f,
        RAns(i, _) => 27 + w.anss.iter().find(|s| s.id == i).unwrap().slot,
        RRenew(i, _) => 29 + w.reqs.iter().find(|s| s.id == i).unwrap().slot,
        Hit(i) | ODel(i) => 31 + (w.ops.iter().find(|s| s.id == i).unwrap().slot.min(1)),
        OAns(i) | ORead(i) => 33 + i % 2,
        OAck(_, f) => 35 + f,
        Elect(..) => 38,
        Tick(_) => 39,
        _ => 63,
    }
}

fn walk(c: &Cfg, seed: u64, len: usize, trace: &mut Vec<Act>) -> Option<String> {
    let mut r = Rng(seed.wrapping_mul(0x9E3779B97F4A7C15) | 1);
    for _ in 0..4 {
        r.next();
    }
    let mut w = World::new(c);
    trace.clear();
    let mut cand = vec![];
    let mut frozen = [0u32; 64];
    let fr = r.below(4); // how freeze-happy this walk is
    let tickw = [1u32, 1, 3, 8][r.below(4) as usize];
    let mut misses = 0;
    let mask = r.below(32) as u8;
    let fixed = r.below(4) != 0;
    while trace.len() < len {
        if fr > 0 && r.below(12) < fr {
            let k = r.below(42) as usize;
            frozen[k] = 10 + r.below(80) as u32;
        }
        for f in frozen.iter_mut() {
            *f = f.saturating_sub(1);
        }
        candidates(&w, c, &mut cand);
        cand.retain_mut(|(a, wt)| {
            if let Act::Tick(_) = a {
                *wt *= tickw;
            }
            frozen[class(&w, *a) as usize] == 0
        });
        let tot: u64 = cand.iter().map(|x| x.1 as u64).sum();
        if tot == 0 {
            misses += 1;
            if misses > 2000 {
                return None;
            }
            continue;
        }
        let mut x = r.below(tot);
        let mut a = cand[0].0;
        for (b, wt) in &cand {
            if x < *wt as u64 {
                a = *b;
                break;
            }
            x -= *wt as u64;
        }
        if let Act::Tick(_) = a {
            a = Act::Tick(if c.drift { if fixed { mask } else { r.below(32) as u8 } } else { 0 });
        }
        match w.step(c, a) {
            Ok(true) => {
                misses = 0;
                trace.push(a)
            }
            Ok(false) => {
                misses += 1;
                if misses > 2000 {
                    return None;
                }
            }
            Err(e) => {
                trace.push(a);
                return Some(e);
            }
        }
    }
    None
}
fn replay(c: &Cfg, t: &[Act]) -> Option<(String, Vec<Act>)> {
    let mut w = World::new(c);
    let mut done = vec![];
    for a in t {
        match w.step(c, *a) {
            Ok(true) => done.push(*a),
            Ok(false) => {}
            Err(e) => {
                done.push(*a);
                return Some((e, done));
            }
        }
    }
    None
}
fn shrink(c: &Cfg, t: Vec<Act>) -> (String, Vec<Act>) {
    let (mut e, mut t) = replay(c, &t).unwrap();
    loop {
        let mut changed = false;
        let mut n = t.len() / 2;
        while n >= 1 {
            let mut i = 0;
            while i + n <= t.len() {
                let mut u = t.clone();
                u.drain(i..i + n);
                if let Some((e2, u2)) = std::panic::catch_unwind(|| replay(c, &u)).unwrap_or(None) {
                    if u2.len() < t.len() {
                        t = u2;
                        e = e2;
                        changed = true;
                        continue;
                    }
                }
                i += 1;
            }
            n /= 2;
        }
        // pair deletions
        'p: for i in 0..t.len() {
            for j in i + 1..t.len() {
                let mut u = t.clone();
                u.remove(j);
                u.remove(i);
                if let Some((e2, u2)) = std::panic::catch_unwind(|| replay(c, &u)).unwrap_or(None) {
                    if u2.len() < t.len() {
                        t = u2;
                        e = e2;
                        changed = true;
                        break 'p;
                    }
                }
            }
        }
        // simplify ticks
        for i in 0..t.len() {
            if let Act::Tick(m) = t[i] {
                if m != 0 {
                    let mut u = t.clone();
                    u[i] = Act::Tick(0);
                    if let Some((e2, u2)) = replay(c, &u) {
                        if u2.len() <= t.len() {
                            t = u2;
                            e = e2;
                        }
                    }
                }
            }
        }
        if !changed {
            return (e, t);
        }
    }
}
fn random(
    c: Cfg,
    secs: u64,
    len: usize,
    threads: u64,
    seed0: u64,
) -> (u64, u64, Option<(u64, Vec<Act>)>) {
    let walks = AtomicU64::new(0);
    let steps = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let found = std::sync::Mutex::new(None);
    let end = Instant::now() + Duration::from_secs(secs);
    std::thread::scope(|s| {
        for th in 0..threads {
            let (walks, steps, stop, found) = (&walks, &steps, &stop, &found);
            s.spawn(move || {
                let mut tr = vec![];
                let mut i = 0u64;
                while !stop.load(Relaxed) && Instant::now() < end {
                    i += 1;
                    let seed = seed0 + i * threads + th;
                    let r = walk(&c, seed, len, &mut tr);
                    walks.fetch_add(1, Relaxed);
                    steps.fetch_add(tr.len() as u64, Relaxed);
                    if r.is_some() {
                        stop.store(true, Relaxed);
                        *found.lock().unwrap() = Some((seed, tr.clone()));
                    }
                }
            });
        }
    });
    (walks.into_inner(), steps.into_inner(), found.into_inner().unwrap())
}
fn fp(w: &World) -> u64 {
    let mut h = std::collections::hash_map::DefaultHasher::new();
    w.hash(&mut h);
    h.finish()
}
fn all_acts(w: &World, c: &Cfg) -> Vec<Act> {
    let mut v = vec![];
    candidates(w, c, &mut v);
    v.into_iter().map(|x| x.0).collect()
}

fn small(w: &World, c: &Cfg) -> Vec<Act> {
    use Act::*;
    let mut v = all_acts(w, c);
    v.retain(|a| match *a {
        Break(_) | LClose(..) => c.ends,
        Prune(..)
        | DropNet(..)
        | CrashNode(_)
        | CrashFe(_)
        | Remove(..)
        | StepDown(_)
        | Register(..)
        | OFail(_)
        | Read(255, ..)
        | RRenew(_, true)
        | RAns(_, true) => false,
        Elect(n, m) => (n, m) == (1, 0b110),
        Repl(l, f) => matches!((l, f), (0, 1) | (1, 2) | (1, 0)),
        Apply(2) => false,
        RAck(l, _, f) => f == (l + 1) % 3,
        OAck(i, f) => w
            .ops
            .iter()
            .any(|o| o.id == i && matches!(o.ph, Ph::Conf { leader, .. } if f == (leader + 1) % 3)),
        Send(_, s, _) => s != 2,
        Feed(_, 2) | Feed(2, _) => false,
        _ => true,
    });
    v
}
fn dfs(c: Cfg, w0: World, secs: u64) {
    let t0 = Instant::now();
    let mut seen: HashSet<u64> = HashSet::new();
    let mut st = vec![w0];
    let mut trans = 0u64;
    while let Some(w) = st.pop() {
        for a in small(&w, &c) {
            let mut x = w.clone();
            match x.step(&c, a) {
                Ok(false) => {}
                Ok(true) => {
                    trans += 1;
                    if let Act::Repl(l, _) = a {
                        let _ = x.step(&c, Act::Commit(l));
                    }
                    if seen.insert(fp(&x)) {
                        st.push(x);
                    }
                }
                Err(e) => {
                    println!("exhaustive {:?}: VIOLATION after {} states: {e}", c.bug, seen.len());
                    return;
                }
            }
        }
        if t0.elapsed().as_secs() > secs {
            println!(
                "exhaustive {:?}: stopped at {} states, {trans} transitions, no violation",
                c.bug,
                seen.len()
            );
            return;
        }
    }
    println!(
        "exhaustive {:?}: EXHAUSTED, {} states, {trans} transitions, {:?}, no violation",
        c.bug,
        seen.len(),
        t0.elapsed()
    );
}
#[allow(dead_code)]
fn bfs(c: Cfg, mut w0: World, cap: usize, secs: u64) {
    // depth-bounded breadth first, fingerprints only; parents kept for the trace
    let _ = &mut w0;
    let t0 = Instant::now();
    let mut seen: HashSet<u64> = HashSet::new();
    let mut q: VecDeque<(World, u32)> = VecDeque::new();
    seen.insert(fp(&w0));
    q.push_back((w0, 0));
    let mut maxd = 0;
    let mut trans = 0u64;
    while let Some((w, d)) = q.pop_front() {
        if d > maxd {
            maxd = d;
            eprintln!("depth {d} states {} queue {} {:?}", seen.len(), q.len(), t0.elapsed());
        }
        for a in all_acts(&w, &c) {
            let mut x = w.clone();
            match x.step(&c, a) {
                Ok(false) => {}
                Ok(true) => {
                    trans += 1;
                    if seen.insert(fp(&x)) {
                        q.push_back((x, d + 1));
                    }
                }
                Err(e) => {
                    println!(
                        "BFS {:?}: VIOLATION at depth {} after {} states: {e}; last {a:?}",
                        c.bug,
                        d + 1,
                        seen.len()
                    );
                    return;
                }
            }
        }
        if seen.len() > cap || t0.elapsed().as_secs() > secs {
            println!(
                "BFS {:?}: stopped, complete to depth {}, {} states, {trans} transitions, no violation",
                c.bug,
                maxd - 1,
                seen.len()
            );
            return;
        }
    }
    println!(
        "BFS {:?}: EXHAUSTED, {} states, {trans} transitions, depth {maxd}, no violation",
        c.bug,
        seen.len()
    );
}

const BUGS: &[Bug] = &[
    Bug::LeaseFromAnswer,
    Bug::NoWait,
    Bug::NewLeaderNoWait,
    Bug::NoFloor,
    Bug::FollowerEarly,
    Bug::LeaderEarly,
    Bug::NoRound,
    Bug::NoBase,
    Bug::NoNoop,
    Bug::CheckAtReceipt,
    Bug::RenewWhileRemoving,
    Bug::ValueThenLease,
    Bug::ValueInInval,
    Bug::SupersedeById,
    Bug::AnswerMismatch,
    Bug::RAfterValue,
    Bug::Coalesce,
    Bug::AnswerNotTied,
    Bug::OldRound,
    Bug::DriftIgnored,
    Bug::KeepTable,
    Bug::LeadReadNoNoop,
    Bug::BaseIsReleased,
    Bug::FloorForgotten,
    Bug::EarlyExitKeepsLease,
    Bug::ReadAcrossTerms,
    Bug::LeaderRestore,
    Bug::CloseBeforeDrop,
    Bug::SilenceIsEnd,
    Bug::EndNotTied,
    Bug::EndBeforeStart,
    Bug::LeaseOfLeader,
];

fn cfg(bug: Bug) -> Cfg {
    Cfg {
        bug,
        relaxed: false,
        valsafe: false,
        early: false,
        t: [55, 75],
        w: if bug == Bug::DriftIgnored { [55, 75] } else { [61, 83] },
        keys: 2,
        drift: true,
        maxops: 4,
        bfs: false,
        ends: false,
        sentcond: true,
        maxlog: 24,
        warm: bug != Bug::SupersedeById,
    }
}

fn main() {
    let a: Vec<String> = std::env::args().collect();
    let secs: u64 = a.get(2).and_then(|x| x.parse().ok()).unwrap_or(30);
    let len: usize = a.get(3).and_then(|x| x.parse().ok()).unwrap_or(250);
    std::panic::set_hook(Box::new(|i| eprintln!("panic {i}")));
    match a.get(1).map(|s| s.as_str()).unwrap_or("bugs") {
        "clean" => {
            for (name, relaxed, valsafe, early, sentcond, keys) in [
                ("strict", false, false, false, true, 2),
                ("sent-condition off", false, false, false, false, 2),
                ("relaxed rule 3", true, false, false, true, 2),
                ("value+released", false, true, false, true, 2),
                ("early invalidate", false, false, true, true, 2),
                ("all three", true, true, true, false, 2),
                ("one key, all three", true, true, true, false, 1),
            ] {
                if let Some(only) = a.get(4) {
                    if !name.starts_with(only.as_str()) {
                        continue;
                    }
                }
                let c = Cfg { relaxed, valsafe, early, sentcond, keys, ..cfg(Bug::None) };
                let (w, s, f) = random(c, secs, len, 2, 1 << 40);
                println!(
                    "clean [{name}]: {w} walks, {s} steps, {}",
                    if f.is_some() { "VIOLATION" } else { "no violation" }
                );
                if let Some((seed, t)) = f {
                    let (e, t) = shrink(&c, t);
                    println!("  seed {seed}: {e}");
                    for x in t {
                        println!("    {x:?}");
                    }
                }
            }
        }
        "bugs" => {
            for b in BUGS {
                if let Some(only) = a.get(4) {
                    if !only.split(',').any(|o| format!("{b:?}") == o) {
                        continue;
                    }
                }
                let mut c = cfg(*b);
                if let Some(k) = a.get(5) {
                    c.keys = k.parse().unwrap();
                    c.maxops = 2;
                }
                let (w, s, f) = random(c, secs, len, 2, 7);
                match f {
                    None => println!("{b:?}: NOT FOUND in {w} walks, {s} steps"),
                    Some((_, t)) => {
                        let l0 = t.len();
                        let (e, t) = shrink(&c, t);
                        println!(
                            "{b:?}: found after {w} walks ({s} steps); trace {l0} -> {}: {e}",
                            t.len()
                        );
                        for x in &t {
                            print!(" {x:?}");
                        }
                        println!();
                    }
                }
            }
        }
        "directed" => {
            use Act::*;
            let t = vec![
                Elect(1, 6),
                Tick(0),
                Tick(0),
                Tick(0),
                Tick(0),
                Tick(0),
                Tick(0),
                Tick(0),
                Tick(0),
                Tick(0),
                Propose(1, 1),
                Repl(1, 2),
                Commit(1),
                Apply(1),
                Apply(1),
                Release(1),
                AckW(1),
                Read(255, 0, 50),
                Send(50, 0, 0),
                Repl(1, 0),
                Elect(0, 5),
                OAck(50, 2),
                ORead(50),
                Feed(1, 0),
                OAns(50),
                ODel(50),
            ];
            // Front end 0 has session 50, a lease, and a value of key 0.
            let in_use = [
                RHello(50),
                DownD(50),
                UpD(50),
                AskRenew(0, 51),
                RRenew(51, false),
                RAck(0, 51, 1),
                Answer(0, 51),
                RAns(51, false),
                Read(0, 0, 52),
                Hit(52),
                Hit(52),
                Send(52, 0, 0),
                OAck(52, 1),
                ORead(52),
                OAns(52),
                ODel(52),
            ];
            // Somebody changes it, and is told; then front end 0 is asked.
            let changed = [
                Propose(0, 1),
                Repl(0, 1),
                Commit(0),
                Apply(0),
                DownD(2),
                UpD(2),
                Release(0),
                AckW(0),
                Read(0, 0, 53),
                Hit(53),
                Hit(53),
                Hit(53),
            ];
            // The end of an old stream comes when a new session of the same process has a lease.
            let late_end =
                [&[Break(0), Connect(0, 0, 50)][..], &in_use, &[UpD(1)], &changed].concat();
            // A hello that was given up comes when a later session of the same process has a lease, and
            // the end of its stream with it.
            let given_up = [Break(0), Connect(0, 0, 49), Break(0), Connect(0, 0, 50)];
            let late_hello = [&given_up[..], &in_use, &[RHello(49), UpD(49)], &changed].concat();
            for (b, t) in [
                (Bug::ReadAcrossTerms, &t),
                (Bug::EndNotTied, &late_end),
                (Bug::EndBeforeStart, &late_hello),
                (Bug::None, &t),
                (Bug::None, &late_end),
                (Bug::None, &late_hello),
            ] {
                match replay(&cfg(b), t) {
                    Some((e, u)) => println!("{b:?}: {e} {u:?}"),
                    None => println!("{b:?}: no violation"),
                }
            }
        }
        "bfs" => {
            let bug = BUGS
                .iter()
                .copied()
                .find(|b| Some(&format!("{b:?}")) == a.get(4))
                .unwrap_or(Bug::None);
            let c = Cfg {
                drift: false,
                t: [20, 28],
                w: [20, 28],
                keys: 1,
                maxops: 2,
                bfs: true,
                ends: a.get(6).is_some_and(|x| x == "ends"),
                maxlog: 9,
                sentcond: false,
                ..cfg(bug)
            };
            let w = World::new(&c);
            let mut w = w;
            w.b_elect = 1;
            w.b_write = 1;
            w.b_op = 2;
            w.b_join = 0;
            w.b_renew = 1;
            w.b_crash = 0;
            w.b_conn = 2;
            w.b_tick = 2;
            w.b_dup = 0;
            let p: Vec<u8> = a
                .get(5)
                .map(|x| x.split(',').map(|y| y.parse().unwrap()).collect())
                .unwrap_or(vec![1, 1, 2, 1, 1, 2]);
            w.b_elect = p[0];
            w.b_write = p[1];
            w.b_op = p[2];
            w.b_renew = p[3];
            w.b_conn = p[4];
            w.b_tick = p[5];
            dfs(c, w, secs);
        }
        _ => {}
    }
}
