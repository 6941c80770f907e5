//! Abstract model of the Pygmy cache protocol (3 catalog nodes, 2 front-end processes).
use std::collections::VecDeque;
pub const N: usize = 3;
pub const S: usize = 2; // front-end process slots
pub const K: usize = 2;
pub type Ix = u8;
pub const NOBASE: Ix = 255;

#[derive(Clone, Copy, Hash, PartialEq, Eq, Debug)]
pub enum Ent {
    Noop,
    Write(u8),
    Join(u8, u8),
    Remove(u8, u8),
}
#[derive(Clone, Copy, Hash, PartialEq, Eq, Debug)]
pub struct Entry {
    pub term: u8,
    pub e: Ent,
}
#[derive(Clone, Hash, PartialEq, Eq, Debug)]
pub struct Sess {
    pub sid: u8,
    pub base: Ix,
    pub sent: Ix,
    pub acked: Ix,
    pub started: bool,
}
#[derive(Clone, Hash, PartialEq, Eq, Debug)]
pub struct Holder {
    pub slot: u8,
    pub nonce: u8,
    pub old: bool,
    pub grant: Option<u16>,
    pub sess: Option<Sess>,
    pub removing: bool,
}
impl Holder {
    fn forget(&mut self) {
        self.sess = None;
        self.old = false;
        self.grant = None;
    }
}
#[derive(Clone, Hash, PartialEq, Eq, Debug)]
pub struct Renew {
    pub id: u8,
    pub slot: u8,
    pub nonce: u8,
    pub sid: u8,
    pub q: u16,
    pub recv: u16,
    pub sent_at: Ix,
    pub early_ok: bool,
    pub acks: u8,
}
#[derive(Clone, Hash, PartialEq, Eq, Debug)]
pub struct Lead {
    pub term: u8,
    pub noop: Ix,
    pub elected: u16,
    pub init: bool,
    pub rel: Ix,
    pub mat: [Ix; N],
    pub holders: Vec<Holder>,
    pub renews: Vec<Renew>,
    pub writes: Vec<Ix>,
    pub lastround: u8,
}
#[derive(Clone, Hash, PartialEq, Eq, Debug)]
pub struct Node {
    pub term: u8,
    pub log: Vec<Entry>,
    pub commit: Ix,
    pub applied: Ix,
    pub lead: Option<Lead>,
    pub relk: Ix,
    pub clock: u16,
}
#[derive(Clone, Hash, PartialEq, Eq, Debug)]
pub struct FS {
    pub node: u8,
    pub sid: u8,
    pub term: u8,
}
#[derive(Clone, Hash, PartialEq, Eq, Debug)]
pub struct Fe {
    pub nonce: u8,
    pub clock: u16,
    pub sess: Option<FS>,
    pub lease: u16,
    pub base: Ix,
    pub floor: [Ix; K],
    pub cache: [Option<(Ix, Ix)>; K],
    pub pend: [Ix; K],
    pub maxterm: u8,
    pub lastq: u16,
    pub nextsid: u8,
}
#[derive(Clone, Hash, PartialEq, Eq, Debug)]
pub enum Down {
    Start(Ix),
    Inval(Ix, u8),
    Released(Ix),
}
/// What the front end's side of a stream says: acknowledgements, and at last that it has ended.
#[derive(Clone, Hash, PartialEq, Eq, Debug)]
pub enum Up {
    Ack(Ix),
    End,
}
#[derive(Clone, Hash, PartialEq, Eq, Debug)]
pub struct Stream {
    pub slot: u8,
    pub nonce: u8,
    pub sid: u8,
    pub node: u8,
    pub term: u8,
    pub down: VecDeque<Down>,
    pub up: VecDeque<Up>,
}
#[derive(Clone, Hash, PartialEq, Eq, Debug)]
pub struct Hello {
    pub slot: u8,
    pub nonce: u8,
    pub sid: u8,
    pub node: u8,
}
#[derive(Clone, Hash, PartialEq, Eq, Debug)]
pub struct Req {
    pub id: u8,
    pub slot: u8,
    pub nonce: u8,
    pub sid: u8,
    pub node: u8,
    pub q: u16,
}
#[derive(Clone, Hash, PartialEq, Eq, Debug)]
pub enum Ph {
    Hit0,
    Hit1(u16),
    Hit2(u16, Ix),
    Miss,
    Conf { leader: u8, term: u8, serve: u8, ri: Ix, acks: u8 },
    Got { serve: u8, ver: Ix, r: Ix },
    Fly { ver: Ix, r: Ix },
    Joined,
}
#[derive(Clone, Hash, PartialEq, Eq, Debug)]
pub struct Op {
    pub id: u8,
    pub slot: u8,
    pub k: u8,
    pub p: Ix,
    pub sid0: u8,
    pub ph: Ph,
} // slot 255: direct, uncached

#[derive(Clone, Hash, PartialEq, Eq, Debug)]
pub struct World {
    pub nodes: [Node; N],
    pub fes: [Fe; S],
    pub streams: Vec<Stream>,
    pub hellos: Vec<Hello>,
    pub reqs: Vec<Req>,
    pub anss: Vec<Req>,
    pub ops: Vec<Op>,
    pub truth: Vec<Entry>,
    pub seen: Ix,
    pub nnonce: u8,
    pub label: u8,
    // budgets
    pub b_elect: u8,
    pub b_write: u8,
    pub b_op: u8,
    pub b_join: u8,
    pub b_renew: u8,
    pub b_crash: u8,
    pub b_conn: u8,
    pub b_tick: u8,
    pub b_dup: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Bug {
    None,
    LeaseFromAnswer,
    NoWait,
    NewLeaderNoWait,
    NoFloor,
    FollowerEarly,
    LeaderEarly,
    NoRound,
    NoBase,
    NoNoop,
    CheckAtReceipt,
    RenewWhileRemoving,
    ValueThenLease,
    ValueInInval,
    SupersedeById,
    AnswerMismatch,
    RAfterValue,
    Coalesce,
    AnswerNotTied,
    OldRound,
    DriftIgnored,
    KeepTable,
    LeadReadNoNoop,
    BaseIsReleased,
    FloorForgotten,
    EarlyExitKeepsLease,
    ReadAcrossTerms,
    LeaderRestore,
    CloseBeforeDrop,
    SilenceIsEnd,
    EndNotTied,
    EndBeforeStart,
    LeaseOfLeader,
}
#[derive(Clone, Copy, Debug)]
pub struct Cfg {
    pub bug: Bug,
    pub relaxed: bool,
    pub valsafe: bool,
    pub early: bool,
    /// How long a lease of each front end lasts by its own clock, and how long a leader waits for it.
    /// They differ while a changed setting is being rolled out.
    pub t: [u16; 2],
    pub w: [u16; 2],
    pub keys: usize,
    pub drift: bool,
    pub maxops: usize,
    pub bfs: bool,
    /// Whether the exhaustive search also breaks streams, and has leaders close sessions.
    pub ends: bool,
    pub sentcond: bool,
    pub warm: bool,
    pub maxlog: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Act {
    Tick(u8),
    Elect(u8, u8),
    StepDown(u8),
    Repl(u8, u8),
    Commit(u8),
    Apply(u8),
    Feed(u8, u8),
    Propose(u8, u8),
    AckW(u8),
    Release(u8),
    CrashNode(u8),
    Register(u8, u8),
    Connect(u8, u8, u8),
    RHello(u8),
    DownD(u8),
    UpD(u8),
    Break(u8),
    /// The leader closes a session by itself: it is late, or too slow.
    LClose(u8, u8),
    /// Planted: the front end ends its side and has yet to drop its cache.
    CloseUp(u8),
    CrashFe(u8),
    AskRenew(u8, u8),
    RRenew(u8, bool),
    RAck(u8, u8, u8),
    Answer(u8, u8),
    RAns(u8, bool),
    Remove(u8, u8),
    DropNet(u8, u8),
    Read(u8, u8, u8),
    Hit(u8),
    Send(u8, u8, u8),
    OAck(u8, u8),
    ORead(u8),
    OAns(u8),
    ODel(u8),
    Prune(u8, u8),
    OFail(u8),
}

fn lastw(log: &[Entry], upto: Ix, mask: u8) -> Ix {
    let mut i = (upto as usize).min(log.len());
    while i > 0 {
        if let Ent::Write(m) = log[i - 1].e {
            if m & mask != 0 {
                return i as Ix;
            }
        }
        i -= 1;
    }
    0
}
fn maj(m: u8) -> bool {
    m.count_ones() >= 2
}

impl World {
    pub fn new(c: &Cfg) -> World {
        let node =
            Node { term: 0, log: vec![], commit: 0, applied: 0, lead: None, relk: 0, clock: 100 };
        let fe = |n| Fe {
            nonce: n,
            clock: 100,
            sess: None,
            lease: 0,
            base: NOBASE,
            floor: [0; K],
            cache: [None; K],
            pend: [0; K],
            maxterm: 0,
            lastq: 0,
            nextsid: 0,
        };
        let mut w = World {
            nodes: [node.clone(), node.clone(), node],
            fes: [fe(0), fe(1)],
            streams: vec![],
            hellos: vec![],
            reqs: vec![],
            anss: vec![],
            ops: vec![],
            truth: vec![],
            seen: 0,
            nnonce: 2,
            label: 0,
            b_elect: 3,
            b_write: 5,
            b_op: 14,
            b_join: 4,
            b_renew: 10,
            b_crash: 2,
            b_conn: 7,
            b_tick: 60,
            b_dup: 1,
        };
        // Start: node 0 leads, both front ends registered.
        let ok = |w: &mut World, a: Act| assert!(w.step(c, a).unwrap(), "{:?}", a);
        ok(&mut w, Act::Elect(0, 0b111));
        for a in [
            Act::Repl(0, 1),
            Act::Repl(0, 2),
            Act::Commit(0),
            Act::Apply(0),
            Act::Register(0, 0),
            Act::Register(1, 0),
            Act::Repl(0, 1),
            Act::Repl(0, 2),
            Act::Commit(0),
            Act::Apply(0),
            Act::Apply(0),
            Act::Repl(0, 1),
            Act::Repl(0, 2),
        ] {
            ok(&mut w, a);
        }
        for n in 1..3u8 {
            for _ in 0..3 {
                ok(&mut w, Act::Apply(n));
            }
        }
        ok(&mut w, Act::Release(0));
        for n in 1..3u8 {
            ok(&mut w, Act::Feed(0, n));
        }
        if c.warm {
            use Act::*;
            let (s0, s1) = (1u8, 2u8);
            let mut v = vec![
                Connect(0, 0, s0),
                Connect(1, 0, s1),
                RHello(s0),
                RHello(s1),
                DownD(s0),
                UpD(s0),
                DownD(s1),
                UpD(s1),
            ];
            let mut id = 3u8;
            for f in 0..2u8 {
                v.extend([
                    AskRenew(f, id),
                    RRenew(id, false),
                    RAck(0, id, 1),
                    Answer(0, id),
                    RAns(id, false),
                ]);
                id += 1;
                for k in 0..c.keys as u8 {
                    v.extend([
                        Read(f, k, id),
                        Hit(id),
                        Hit(id),
                        Send(id, 0, 0),
                        OAck(id, 1),
                        ORead(id),
                        OAns(id),
                        ODel(id),
                    ]);
                    id += 1;
                }
            }
            for a in v {
                if let Act::Hit(_) | Act::OAck(..) = a {
                    let _ = w.step(c, a);
                } else {
                    ok(&mut w, a);
                }
            }
        }
        w
    }
    fn truth_add(&mut self, n: usize) {
        let c = self.nodes[n].commit as usize;
        while self.truth.len() < c {
            let e = self.nodes[n].log[self.truth.len()];
            self.truth.push(e);
        }
        for i in 0..c {
            assert!(self.truth[i] == self.nodes[n].log[i], "raft abstraction broken");
        }
    }
    fn set_term(&mut self, n: usize, t: u8, c: &Cfg) {
        let nd = &mut self.nodes[n];
        if t > nd.term {
            nd.term = t;
            if let Some(l) = &mut nd.lead {
                if l.term < t {
                    if c.bug == Bug::KeepTable {
                        l.term = 0;
                    } else {
                        nd.lead = None;
                    }
                }
            }
        }
    }
    fn is_lead(&self, n: usize) -> bool {
        self.nodes[n].lead.as_ref().map_or(false, |l| l.term != 0)
    }
    fn members(&self, c: &Cfg, n: usize, upto: Ix) -> Vec<(u8, u8)> {
        let mut v: Vec<(u8, u8)> = vec![];
        for e in &self.nodes[n].log[..upto as usize] {
            match e.e {
                Ent::Join(s, x) => {
                    if c.bug == Bug::SupersedeById {
                        v.clear();
                    }
                    if !v.contains(&(s, x)) {
                        v.push((s, x))
                    }
                }
                Ent::Remove(s, x) => v.retain(|y| *y != (s, x)),
                _ => {}
            }
        }
        v
    }
    fn init_lead(&mut self, c: &Cfg, n: usize) {
        let ap = self.nodes[n].applied;
        let m = self.members(c, n, ap);
        let old = c.bug != Bug::NewLeaderNoWait;
        let l = self.nodes[n].lead.as_mut().unwrap();
        l.init = true;
        if l.holders.is_empty() {
            l.holders = m
                .into_iter()
                .map(|(slot, nonce)| Holder {
                    slot,
                    nonce,
                    old,
                    grant: None,
                    sess: None,
                    removing: false,
                })
                .collect();
        }
    }
    fn nolease(&self, c: &Cfg, n: usize, h: &Holder) -> bool {
        let nd = &self.nodes[n];
        let l = nd.lead.as_ref().unwrap();
        // The nonce tells every leader how long the leases of this process are.
        let w = c.w[if c.bug == Bug::LeaseOfLeader { 0 } else { h.slot as usize }];
        (!h.old || nd.clock >= l.elected + w) && h.grant.map_or(true, |g| nd.clock >= g + w)
    }
    fn can_release(&self, c: &Cfg, n: usize, i: Ix) -> bool {
        let nd = &self.nodes[n];
        let l = nd.lead.as_ref().unwrap();
        if !l.init || i > nd.applied || (i < l.noop && c.bug != Bug::NoNoop) {
            return false;
        }
        if c.bug == Bug::NoWait {
            return true;
        }
        let lw = lastw(&nd.log, i, 255);
        l.holders.iter().all(|h| {
            let acked = h.sess.as_ref().map_or(false, |s| s.started && s.acked >= lw);
            acked || self.nolease(c, n, h)
        })
    }
    fn best_release(&self, c: &Cfg, n: usize) -> Ix {
        let nd = &self.nodes[n];
        let l = match &nd.lead {
            Some(l) if l.term != 0 => l,
            _ => return 0,
        };
        let mut i = nd.applied;
        let lo = l.rel;
        while i > lo {
            if self.can_release(c, n, i) {
                return i;
            }
            i -= 1;
        }
        0
    }
    fn down(&mut self, slot: u8, nonce: u8, sid: u8, node: usize, d: Down) {
        for s in &mut self.streams {
            if s.slot == slot && s.nonce == nonce && s.sid == sid && s.node == node as u8 {
                s.down.push_back(d);
                return;
            }
        }
    }
    /// The front end, or the system for a dead one, ends its side of the stream.
    fn end_up(&mut self, f: usize) {
        let fe = &self.fes[f];
        let Some(sess) = &fe.sess else { return };
        for s in &mut self.streams {
            if s.slot == f as u8 && s.nonce == fe.nonce && s.sid == sess.sid {
                s.up.push_back(Up::End);
            }
        }
    }
    /// Drops everything, and ends the stream then.
    fn fe_drop(&mut self, f: usize) {
        self.end_up(f);
        let fe = &mut self.fes[f];
        fe.sess = None;
        fe.lease = 0;
        fe.base = NOBASE;
        fe.floor = [0; K];
        fe.cache = [None; K];
        fe.pend = [0; K];
    }
    fn gc(&mut self) {
        let fes = self.fes.clone();
        self.streams.retain_mut(|s| {
            let fe = &fes[s.slot as usize];
            let live = fe.nonce == s.nonce && fe.sess.as_ref().map_or(false, |x| x.sid == s.sid);
            if !live {
                s.down.clear();
            }
            live || !s.up.is_empty()
        });
    }
    fn complete(&mut self, k: u8, p: Ix, ver: Ix) -> Result<(), String> {
        let exp = lastw(&self.truth, p, 1 << k);
        if ver < exp {
            return Err(format!(
                "STALE: read of key {k} that began after index {p} was seen returned version {ver}, expected at least {exp}"
            ));
        }
        self.seen = self.seen.max(ver);
        Ok(())
    }
    fn relknown(&self, n: usize) -> Ix {
        let nd = &self.nodes[n];
        nd.relk.max(nd.lead.as_ref().filter(|l| l.term != 0).map_or(0, |l| l.rel))
    }
    fn send_inval(&mut self, n: usize, i: Ix, m: u8) {
        let mut out = vec![];
        if let Some(l) = self.nodes[n].lead.as_mut() {
            if l.init {
                for h in &mut l.holders {
                    if let Some(s) = &mut h.sess {
                        if s.base < i {
                            s.sent = s.sent.max(i);
                            out.push((h.slot, h.nonce, s.sid));
                        }
                    }
                }
            }
        }
        for (a, b, s) in out {
            self.down(a, b, s, n, Down::Inval(i, m));
        }
    }

    /// Ok(false): not enabled. Err: a stale read.
    pub fn step(&mut self, c: &Cfg, a: Act) -> Result<bool, String> {
        use Act::*;
        macro_rules! no {
            () => {
                return Ok(false)
            };
        }
        match a {
            Tick(m) => {
                if self.b_tick == 0 {
                    no!()
                }
                self.b_tick -= 1;
                for n in 0..N {
                    self.nodes[n].clock += if m >> n & 1 == 1 { 11 } else { 10 };
                }
                for f in 0..S {
                    self.fes[f].clock += if m >> (N + f) & 1 == 1 { 11 } else { 10 };
                }
            }
            Elect(cand, voters) => {
                let cd = cand as usize;
                if self.b_elect == 0 || !maj(voters) || voters >> cd & 1 == 0 {
                    no!()
                }
                let t = (0..N)
                    .filter(|n| voters >> n & 1 == 1)
                    .map(|n| self.nodes[n].term)
                    .max()
                    .unwrap()
                    + 1;
                if self.nodes[cd].term + 1 < t && c.bfs {
                    no!()
                }
                let key = |w: &World, n: usize| {
                    (w.nodes[n].log.last().map_or(0, |e| e.term), w.nodes[n].log.len())
                };
                let ck = key(self, cd);
                for n in 0..N {
                    if voters >> n & 1 == 1 && key(self, n) > ck {
                        no!()
                    }
                }
                if self.is_lead(cd) {
                    no!()
                }
                self.b_elect -= 1;
                for n in 0..N {
                    if voters >> n & 1 == 1 {
                        self.set_term(n, t, c);
                    }
                }
                let nd = &mut self.nodes[cd];
                nd.log.push(Entry { term: t, e: Ent::Noop });
                let noop = nd.log.len() as Ix;
                let keep = if c.bug == Bug::KeepTable { nd.lead.take() } else { None };
                let mut mat = [0; N];
                mat[cd] = noop;
                nd.lead = Some(Lead {
                    term: t,
                    noop,
                    elected: nd.clock,
                    init: false,
                    rel: 0,
                    mat,
                    holders: vec![],
                    renews: vec![],
                    writes: vec![],
                    lastround: 0,
                });
                if let Some(k) = keep {
                    let l = nd.lead.as_mut().unwrap();
                    l.holders = k.holders;
                }
                if c.bug == Bug::NoNoop {
                    self.init_lead(c, cd);
                }
            }
            StepDown(n) => {
                let n = n as usize;
                if !self.is_lead(n) {
                    no!()
                }
                let mt = self.nodes.iter().map(|x| x.term).max().unwrap();
                if mt <= self.nodes[n].term {
                    no!()
                }
                self.set_term(n, mt, c);
            }
            Repl(l, f) => {
                let (l, f) = (l as usize, f as usize);
                if l == f || !self.is_lead(l) {
                    no!()
                }
                let lt = self.nodes[l].lead.as_ref().unwrap().term;
                if self.nodes[f].term > lt {
                    no!()
                }
                let (log, cm) = (self.nodes[l].log.clone(), self.nodes[l].commit);
                if self.nodes[f].log == log
                    && self.nodes[f].commit >= cm
                    && self.nodes[f].term == lt
                    && self.nodes[l].lead.as_ref().unwrap().mat[f] as usize == log.len()
                {
                    no!()
                }
                self.set_term(f, lt, c);
                let nf = &mut self.nodes[f];
                nf.log = log;
                nf.commit = nf.commit.max(cm);
                let len = nf.log.len() as Ix;
                self.nodes[l].lead.as_mut().unwrap().mat[f] = len;
            }
            Commit(l) => {
                let l = l as usize;
                if !self.is_lead(l) {
                    no!()
                }
                let nd = &mut self.nodes[l];
                let ld = nd.lead.as_mut().unwrap();
                ld.mat[l] = nd.log.len() as Ix;
                let mut m = ld.mat;
                m.sort();
                let i = m[1];
                if i <= nd.commit || nd.log[i as usize - 1].term != ld.term {
                    no!()
                }
                nd.commit = i;
                self.truth_add(l);
            }
            Apply(n) => {
                let n = n as usize;
                let nd = &mut self.nodes[n];
                if nd.applied >= nd.commit {
                    no!()
                }
                nd.applied += 1;
                let i = nd.applied;
                let e = nd.log[i as usize - 1];
                if self.is_lead(n) {
                    let (init, noop) = {
                        let l = self.nodes[n].lead.as_ref().unwrap();
                        (l.init, l.noop)
                    };
                    if !init {
                        if i >= noop {
                            self.init_lead(c, n);
                        }
                    } else {
                        let l = self.nodes[n].lead.as_mut().unwrap();
                        match e.e {
                            Ent::Join(s, x) => {
                                if c.bug == Bug::SupersedeById {
                                    l.holders.retain(|h| (h.slot, h.nonce) == (s, x));
                                }
                                if !l.holders.iter().any(|h| h.slot == s && h.nonce == x) {
                                    l.holders.push(Holder {
                                        slot: s,
                                        nonce: x,
                                        old: false,
                                        grant: None,
                                        sess: None,
                                        removing: false,
                                    });
                                }
                            }
                            Ent::Remove(s, x) => {
                                l.holders.retain(|h| !(h.slot == s && h.nonce == x))
                            }
                            Ent::Write(m) => {
                                if !(c.early && e.term == l.term) {
                                    self.send_inval(n, i, m)
                                }
                            }
                            Ent::Noop => {}
                        }
                    }
                }
            }
            Feed(l, n) => {
                let (l, n) = (l as usize, n as usize);
                if l == n {
                    no!()
                }
                let r = self.relknown(l);
                if r <= self.nodes[n].relk {
                    no!()
                }
                self.nodes[n].relk = r;
            }
            Propose(l, m) => {
                let l = l as usize;
                if self.b_write == 0
                    || !self.is_lead(l)
                    || m == 0
                    || (m as usize) >= 1 << c.keys
                    || self.nodes[l].log.len() >= c.maxlog
                {
                    no!()
                }
                self.b_write -= 1;
                let t = self.nodes[l].lead.as_ref().unwrap().term;
                self.nodes[l].log.push(Entry { term: t, e: Ent::Write(m) });
                let i = self.nodes[l].log.len() as Ix;
                self.nodes[l].lead.as_mut().unwrap().writes.push(i);
                if c.early {
                    self.send_inval(l, i, m);
                }
            }
            AckW(l) => {
                let l = l as usize;
                let ld = match self.nodes[l].lead.as_mut() {
                    Some(l) if l.term != 0 => l,
                    _ => no!(),
                };
                let x = match ld.writes.iter().position(|w| *w <= ld.rel) {
                    Some(x) => x,
                    None => no!(),
                };
                let i = ld.writes.remove(x);
                // an index known to be released, in this leader's own term and log: it is its own entry
                if i as usize > self.truth.len() {
                    panic!("released but not committed")
                }
                self.seen = self.seen.max(i);
            }
            Release(n) => {
                let n = n as usize;
                if !self.is_lead(n) {
                    no!()
                }
                let r = self.best_release(c, n);
                if r == 0 {
                    no!()
                }
                let l = self.nodes[n].lead.as_mut().unwrap();
                l.rel = r;
                if c.valsafe {
                    let v: Vec<_> = l
                        .holders
                        .iter()
                        .filter_map(|h| h.sess.as_ref().map(|s| (h.slot, h.nonce, s.sid)))
                        .collect();
                    for (a, b, s) in v {
                        self.down(a, b, s, n, Down::Released(r));
                    }
                }
            }
            CrashNode(n) => {
                if self.b_crash == 0 {
                    no!()
                }
                self.b_crash -= 1;
                let restored = if c.bug == Bug::LeaderRestore
                    && self.is_lead(n as usize)
                    && self.nodes[n as usize].lead.as_ref().unwrap().init
                {
                    let mut l = self.nodes[n as usize].lead.clone().unwrap();
                    l.holders.clear();
                    l.renews.clear();
                    l.writes.clear();
                    l.rel = 0;
                    Some(l)
                } else {
                    None
                };
                let nd = &mut self.nodes[n as usize];
                nd.lead = None;
                nd.relk = 0;
                nd.commit = nd.applied;
                if restored.is_some() {
                    nd.lead = restored;
                    self.init_lead(c, n as usize);
                }
                let _ = ();
                for o in &mut self.ops {
                    match o.ph {
                        Ph::Conf { leader, serve, .. } if leader == n || serve == n => {
                            o.ph = Ph::Miss
                        }
                        Ph::Got { serve, .. } if serve == n => o.ph = Ph::Miss,
                        _ => {}
                    }
                }
            }
            Register(f, l) => {
                let (f, l) = (f as usize, l as usize);
                if self.b_join == 0 || !self.is_lead(l) || self.nodes[l].log.len() >= c.maxlog {
                    no!()
                }
                let x = self.fes[f].nonce;
                let ld = self.nodes[l].lead.as_ref().unwrap();
                if !ld.init || ld.holders.iter().any(|h| h.slot == f as u8 && h.nonce == x) {
                    no!()
                }
                if self.nodes[l].log[self.nodes[l].applied as usize..]
                    .iter()
                    .any(|e| e.e == Ent::Join(f as u8, x))
                {
                    no!()
                }
                self.b_join -= 1;
                let t = ld.term;
                self.nodes[l].log.push(Entry { term: t, e: Ent::Join(f as u8, x) });
            }
            Connect(f, n, sid) => {
                if self.b_conn == 0 || sid <= self.fes[f as usize].nextsid {
                    no!()
                }
                self.label = self.label.max(sid);
                let fi = f as usize;
                // leaves the old session, if any: drop lease and cache first
                if let Some(s) = &self.fes[fi].sess {
                    if s.node == n
                        && self.nodes[n as usize]
                            .lead
                            .as_ref()
                            .map_or(true, |l| l.term == s.term || s.term == 0)
                    {
                        no!()
                    }
                }
                if c.bfs && !self.is_lead(n as usize) {
                    no!()
                }
                self.b_conn -= 1;
                let lease = self.fes[fi].lease;
                let cache = self.fes[fi].cache;
                self.fe_drop(fi);
                if c.bug == Bug::EarlyExitKeepsLease {
                    self.fes[fi].lease = lease;
                    self.fes[fi].cache = cache;
                }
                let fe = &mut self.fes[fi];
                fe.nextsid = sid;
                fe.sess = Some(FS { node: n, sid, term: 0 });
                let nonce = fe.nonce;
                self.hellos.push(Hello { slot: f, nonce, sid, node: n });
                self.gc();
            }
            RHello(i) => {
                let i = match self.hellos.iter().position(|x| x.sid == i) {
                    Some(i) => i,
                    None => no!(),
                };
                let h = self.hellos[i].clone();
                let n = h.node as usize;
                if !self.is_lead(n) {
                    self.hellos.remove(i);
                    return Ok(true);
                }
                let (ap, len) = (self.nodes[n].applied, self.nodes[n].log.len() as Ix);
                let l = self.nodes[n].lead.as_mut().unwrap();
                if !l.init {
                    no!()
                }
                let (term, rel) = (l.term, l.rel);
                let hd = match l.holders.iter_mut().find(|x| x.slot == h.slot && x.nonce == h.nonce)
                {
                    Some(x) => x,
                    None => no!(),
                };
                // A hello may come after a later one of the same process, and then replaces its session:
                // the leader cannot tell.
                if hd.removing && c.bug != Bug::RenewWhileRemoving {
                    self.hellos.remove(i);
                    return Ok(true);
                }
                let mut base = if c.early { len } else { ap };
                if c.bug == Bug::BaseIsReleased {
                    base = rel;
                }
                hd.sess = Some(Sess {
                    sid: h.sid,
                    base: if c.early { base } else { ap },
                    sent: base,
                    acked: 0,
                    started: false,
                });
                self.hellos.remove(i);
                let mut st = Stream {
                    slot: h.slot,
                    nonce: h.nonce,
                    sid: h.sid,
                    node: n as u8,
                    term,
                    down: VecDeque::new(),
                    up: VecDeque::new(),
                };
                st.down.push_back(Down::Start(base));
                let fe = &self.fes[h.slot as usize];
                let waits = fe.nonce == h.nonce && fe.sess.as_ref().is_some_and(|x| x.sid == h.sid);
                if !waits {
                    // It has given up before the answer to its hello came.
                    st.up.push_back(Up::End);
                }
                self.streams.push(st);
                self.gc();
            }
            DownD(i) => {
                let i = match self.streams.iter().position(|x| x.sid == i) {
                    Some(i) => i,
                    None => no!(),
                };
                if self.streams[i].down.is_empty() {
                    no!()
                }
                let s = self.streams[i].clone();
                let fi = s.slot as usize;
                let d = self.streams[i].down.pop_front().unwrap();
                let live = self.fes[fi].nonce == s.nonce
                    && self.fes[fi].sess.as_ref().map_or(false, |x| x.sid == s.sid);
                if !live {
                    self.streams[i].down.clear();
                    return Ok(true);
                }
                let mut ack = None;
                let fe = &mut self.fes[fi];
                match d {
                    Down::Start(b) => {
                        if s.term < fe.maxterm {
                            self.fe_drop(fi);
                            self.gc();
                            return Ok(true);
                        }
                        fe.maxterm = s.term;
                        fe.sess.as_mut().unwrap().term = s.term;
                        fe.base = if c.bug == Bug::NoBase { 0 } else { b };
                        ack = Some(b);
                    }
                    Down::Inval(ix, m) => {
                        for k in 0..K {
                            if m >> k & 1 == 1 {
                                fe.cache[k] = None;
                                fe.floor[k] = fe.floor[k].max(ix);
                                if c.bug == Bug::ValueInInval {
                                    fe.cache[k] = Some((ix, ix));
                                }
                                if c.valsafe {
                                    fe.pend[k] = ix;
                                }
                            }
                        }
                        ack = Some(ix);
                    }
                    Down::Released(r) => {
                        for k in 0..K {
                            let p = fe.pend[k];
                            if p > 0 && p <= r && fe.floor[k] <= p {
                                fe.cache[k] = Some((p, p));
                                fe.pend[k] = 0;
                            }
                        }
                    }
                }
                if let Some(x) = ack {
                    self.streams[i].up.push_back(Up::Ack(x));
                }
            }
            UpD(i) => {
                let i = match self.streams.iter().position(|x| x.sid == i) {
                    Some(i) => i,
                    None => no!(),
                };
                if self.streams[i].up.is_empty() {
                    no!()
                }
                let x = self.streams[i].up.pop_front().unwrap();
                let s = self.streams[i].clone();
                let n = s.node as usize;
                if let Some(l) = self.nodes[n].lead.as_mut() {
                    if l.term == s.term {
                        if let Some(h) =
                            l.holders.iter_mut().find(|h| h.slot == s.slot && h.nonce == s.nonce)
                        {
                            if let Some(se) = &mut h.sess {
                                let tied = se.sid == s.sid;
                                match x {
                                    Up::Ack(x) if tied => {
                                        if !se.started {
                                            se.started = true;
                                            h.old = false;
                                            h.grant = None;
                                        }
                                        se.acked = se.acked.max(x);
                                    }
                                    // It serves nothing any more of what it had: no lease to wait for.
                                    Up::End if tied && se.started => h.forget(),
                                    Up::End if tied && c.bug == Bug::EndBeforeStart => h.forget(),
                                    Up::End if c.bug == Bug::EndNotTied => h.forget(),
                                    // What it had before may be that of a later session, and of its
                                    // lease.
                                    Up::End if tied => h.sess = None,
                                    _ => {}
                                }
                            }
                        }
                    }
                }
                self.gc();
            }
            Break(f) => {
                let f = f as usize;
                if self.fes[f].sess.is_none() {
                    no!()
                }
                self.fe_drop(f);
                self.gc();
            }
            LClose(n, sid) => {
                let n = n as usize;
                if !self.is_lead(n) {
                    no!()
                }
                let l = self.nodes[n].lead.as_mut().unwrap();
                let found =
                    l.holders.iter_mut().find(|h| h.sess.as_ref().is_some_and(|s| s.sid == sid));
                match found {
                    Some(h) if c.bug == Bug::SilenceIsEnd => h.forget(),
                    // It may not know: its lease runs on.
                    Some(h) => h.sess = None,
                    None => no!(),
                }
            }
            CloseUp(f) => {
                if c.bug != Bug::CloseBeforeDrop || self.fes[f as usize].sess.is_none() {
                    no!()
                }
                self.end_up(f as usize);
            }
            CrashFe(f) => {
                if self.b_crash == 0 {
                    no!()
                }
                self.b_crash -= 1;
                self.fe_drop(f as usize);
                let x = self.nnonce;
                self.nnonce += 1;
                let fe = &mut self.fes[f as usize];
                fe.nonce = x;
                fe.maxterm = 0;
                fe.lastq = 0;
                self.ops.retain(|o| o.slot != f);
                self.gc();
            }
            AskRenew(f, id) => {
                let fi = f as usize;
                if self.b_renew == 0 {
                    no!()
                }
                let fe = &mut self.fes[fi];
                let s = match &fe.sess {
                    Some(s) if fe.base != NOBASE => s.clone(),
                    _ => no!(),
                };
                if c.bfs && self.reqs.iter().any(|r| r.slot == f) {
                    no!()
                }
                self.b_renew -= 1;
                fe.lastq = fe.clock;
                self.label = self.label.max(id);
                self.reqs.push(Req {
                    id,
                    slot: f,
                    nonce: fe.nonce,
                    sid: s.sid,
                    node: s.node,
                    q: fe.clock,
                });
            }
            RRenew(i, dup) => {
                let i = match self.reqs.iter().position(|x| x.id == i) {
                    Some(i) => i,
                    None => no!(),
                };
                if dup && self.b_dup == 0 {
                    no!()
                }
                let r = self.reqs[i].clone();
                let n = r.node as usize;
                if dup {
                    self.b_dup -= 1
                } else {
                    self.reqs.remove(i);
                }
                if !self.is_lead(n) {
                    return Ok(true);
                }
                let clock = self.nodes[n].clock;
                let l = self.nodes[n].lead.as_mut().unwrap();
                let rel = l.rel;
                if !l.init {
                    return Ok(true);
                }
                let (sent, acked) = match l
                    .holders
                    .iter()
                    .find(|h| h.slot == r.slot && h.nonce == r.nonce)
                    .and_then(|h| h.sess.as_ref())
                {
                    Some(s) if s.sid == r.sid && s.started => (s.sent, s.acked),
                    _ => return Ok(true),
                };
                let lw = lastw(&self.nodes[n].log, rel, 255);
                l_push(
                    self.nodes[n].lead.as_mut().unwrap(),
                    Renew {
                        id: r.id,
                        slot: r.slot,
                        nonce: r.nonce,
                        sid: r.sid,
                        q: r.q,
                        recv: clock,
                        sent_at: sent,
                        early_ok: acked >= lw,
                        acks: 1 << n,
                    },
                );
            }
            RAck(l, i, f) => {
                let (l, f) = (l as usize, f as usize);
                if l == f || !self.is_lead(l) {
                    no!()
                }
                let ld = self.nodes[l].lead.as_ref().unwrap();
                let i = match ld.renews.iter().position(|x| x.id == i) {
                    Some(i) => i,
                    None => no!(),
                };
                if ld.renews[i].acks >> f & 1 == 1 {
                    no!()
                }
                let t = ld.term;
                if self.nodes[f].term > t {
                    no!()
                }
                self.set_term(f, t, c);
                self.nodes[l].lead.as_mut().unwrap().renews[i].acks |= 1 << f;
            }
            Answer(n, i) => {
                let n = n as usize;
                if !self.is_lead(n) {
                    no!()
                }
                let nd = &self.nodes[n];
                let l = nd.lead.as_ref().unwrap();
                let i = match l.renews.iter().position(|x| x.id == i) {
                    Some(i) => i,
                    None => no!(),
                };
                let r = l.renews[i].clone();
                if !maj(r.acks) && c.bug != Bug::NoRound {
                    no!()
                }
                let lw = lastw(&nd.log, l.rel, 255);
                let h = match l.holders.iter().position(|h| h.slot == r.slot && h.nonce == r.nonce)
                {
                    Some(h) => h,
                    None => {
                        self.nodes[n].lead.as_mut().unwrap().renews.remove(i);
                        return Ok(true);
                    }
                };
                let hd = &l.holders[h];
                let s = match &hd.sess {
                    Some(s) if s.sid == r.sid => s,
                    _ => {
                        self.nodes[n].lead.as_mut().unwrap().renews.remove(i);
                        return Ok(true);
                    }
                };
                if hd.removing && c.bug != Bug::RenewWhileRemoving {
                    self.nodes[n].lead.as_mut().unwrap().renews.remove(i);
                    return Ok(true);
                }
                let okk = if c.bug == Bug::CheckAtReceipt {
                    r.early_ok
                } else {
                    s.acked >= lw && (!c.sentcond || s.acked >= r.sent_at)
                };
                if !okk {
                    no!()
                }
                let g = r.recv;
                let ld = self.nodes[n].lead.as_mut().unwrap();
                ld.renews.remove(i);
                let hd = &mut ld.holders[h];
                hd.grant = Some(hd.grant.map_or(g, |x| x.max(g)));
                self.anss.push(Req {
                    id: r.id,
                    slot: r.slot,
                    nonce: r.nonce,
                    sid: r.sid,
                    node: n as u8,
                    q: r.q,
                });
            }
            RAns(i, dup) => {
                let i = match self.anss.iter().position(|x| x.id == i) {
                    Some(i) => i,
                    None => no!(),
                };
                if dup && self.b_dup == 0 {
                    no!()
                }
                let r = self.anss[i].clone();
                if dup {
                    self.b_dup -= 1
                } else {
                    self.anss.remove(i);
                }
                let fe = &mut self.fes[r.slot as usize];
                if fe.nonce != r.nonce {
                    return Ok(true);
                }
                if !(fe.sess.as_ref().map_or(false, |s| s.sid == r.sid))
                    && !(c.bug == Bug::AnswerNotTied && fe.sess.is_some())
                {
                    return Ok(true);
                }
                let t = c.t[r.slot as usize];
                let e = match c.bug {
                    Bug::LeaseFromAnswer => fe.clock + t,
                    Bug::AnswerMismatch => fe.lastq + t,
                    _ => r.q + t,
                };
                fe.lease = fe.lease.max(e);
            }
            Remove(l, x) => {
                let l = l as usize;
                if !self.is_lead(l) || self.nodes[l].log.len() >= c.maxlog {
                    no!()
                }
                let ld = self.nodes[l].lead.as_ref().unwrap();
                let h = match ld.holders.iter().position(|h| h.nonce == x) {
                    Some(h) => h,
                    None => no!(),
                };
                if !ld.init
                    || h >= ld.holders.len()
                    || ld.holders[h].removing
                    || !self.nolease(c, l, &ld.holders[h])
                {
                    no!()
                }
                let (a, b, t) = (ld.holders[h].slot, ld.holders[h].nonce, ld.term);
                let nd = &mut self.nodes[l];
                nd.lead.as_mut().unwrap().holders[h].removing = true;
                nd.log.push(Entry { term: t, e: Ent::Remove(a, b) });
            }
            DropNet(kind, i) => match kind {
                0 => match self.reqs.iter().position(|x| x.id == i) {
                    Some(i) => {
                        self.reqs.remove(i);
                    }
                    None => no!(),
                },
                1 => match self.anss.iter().position(|x| x.id == i) {
                    Some(i) => {
                        self.anss.remove(i);
                    }
                    None => no!(),
                },
                _ => match self.hellos.iter().position(|x| x.sid == i) {
                    Some(i) => {
                        self.hellos.remove(i);
                    }
                    None => no!(),
                },
            },
            Read(slot, k, id) => {
                if self.b_op == 0 || self.ops.len() >= c.maxops || k as usize >= c.keys {
                    no!()
                }
                self.b_op -= 1;
                let mut ph = if slot == 255 { Ph::Miss } else { Ph::Hit0 };
                let mut sid0 = 0;
                if slot != 255 {
                    sid0 = self.fes[slot as usize].nextsid;
                    if c.bug == Bug::Coalesce
                        && self.ops.iter().any(|o| {
                            o.slot == slot
                                && o.k == k
                                && matches!(o.ph, Ph::Conf { .. } | Ph::Got { .. } | Ph::Fly { .. })
                        })
                    {
                        ph = Ph::Joined;
                    }
                }
                let p = self.seen;
                self.label = self.label.max(id);
                self.ops.push(Op { id, slot, k, p, sid0, ph });
            }
            OFail(i) => {
                let i = match self.ops.iter().position(|x| x.id == i) {
                    Some(i) => i,
                    None => no!(),
                };
                if let Ph::Conf { leader, term, .. } = self.ops[i].ph {
                    if self.nodes[leader as usize].lead.as_ref().map_or(true, |l| l.term != term) {
                        self.ops[i].ph = Ph::Miss;
                    } else {
                        no!()
                    }
                } else {
                    no!()
                }
            }
            Hit(i) => {
                let i = match self.ops.iter().position(|x| x.id == i) {
                    Some(i) => i,
                    None => no!(),
                };
                let o = self.ops[i].clone();
                if o.slot == 255 {
                    no!()
                }
                let fe = &self.fes[o.slot as usize];
                let k = o.k as usize;
                match o.ph {
                    Ph::Hit0 if c.bug == Bug::ValueThenLease => {
                        self.ops[i].ph = match fe.cache[k] {
                            Some((v, _)) => Ph::Hit2(0, v),
                            None => Ph::Miss,
                        }
                    }
                    Ph::Hit0 => self.ops[i].ph = Ph::Hit1(fe.lease),
                    Ph::Hit1(e) => {
                        self.ops[i].ph = match fe.cache[k] {
                            Some((v, _)) => Ph::Hit2(e, v),
                            None => {
                                self.ops[i].sid0 = fe.nextsid;
                                Ph::Miss
                            }
                        }
                    }
                    Ph::Hit2(e, v) => {
                        let e = if c.bug == Bug::ValueThenLease { fe.lease } else { e };
                        if fe.clock < e {
                            self.ops.remove(i);
                            self.complete(o.k, o.p, v)?;
                        } else {
                            self.ops[i].sid0 = fe.nextsid;
                            self.ops[i].ph = Ph::Miss;
                        }
                    }
                    _ => no!(),
                }
            }
            Send(i, serve, leader) => {
                let i = match self.ops.iter().position(|x| x.id == i) {
                    Some(i) => i,
                    None => no!(),
                };
                if self.ops[i].ph != Ph::Miss {
                    no!()
                }
                let n = leader as usize;
                if !self.is_lead(n) {
                    no!()
                }
                let nd = &self.nodes[n];
                let l = nd.lead.as_ref().unwrap();
                if nd.applied < l.noop && nd.commit < l.noop && c.bug != Bug::LeadReadNoNoop {
                    no!()
                }
                let mut acks = 1u8 << n;
                if c.bug == Bug::OldRound {
                    acks |= l.lastround;
                }
                self.ops[i].ph = Ph::Conf { leader, term: l.term, serve, ri: nd.commit, acks };
            }
            OAck(i, f) => {
                let f = f as usize;
                let i = match self.ops.iter().position(|x| x.id == i) {
                    Some(i) => i,
                    None => no!(),
                };
                if let Ph::Conf { leader, term, serve, ri, acks } = self.ops[i].ph {
                    if acks >> f & 1 == 1 || !self.is_lead(leader as usize) {
                        no!()
                    }
                    let t = self.nodes[leader as usize].lead.as_ref().unwrap().term;
                    if self.nodes[f].term > t || (t != term && c.bug != Bug::ReadAcrossTerms) {
                        no!()
                    }
                    self.set_term(f, t, c);
                    self.ops[i].ph = Ph::Conf { leader, term, serve, ri, acks: acks | 1 << f };
                    if c.bug == Bug::OldRound {
                        self.nodes[leader as usize].lead.as_mut().unwrap().lastround |= 1 << f;
                    }
                } else {
                    no!()
                }
            }
            ORead(i) => {
                let i = match self.ops.iter().position(|x| x.id == i) {
                    Some(i) => i,
                    None => no!(),
                };
                if let Ph::Conf { serve, ri, acks, .. } = self.ops[i].ph {
                    let nd = &self.nodes[serve as usize];
                    if !maj(acks) || nd.applied < ri {
                        no!()
                    }
                    let ver = lastw(&nd.log, nd.applied, 1 << self.ops[i].k);
                    self.ops[i].ph = Ph::Got { serve, ver, r: nd.applied };
                } else {
                    no!()
                }
            }
            OAns(i) => {
                let i = match self.ops.iter().position(|x| x.id == i) {
                    Some(i) => i,
                    None => no!(),
                };
                if let Ph::Got { serve, ver, r } = self.ops[i].ph {
                    let n = serve as usize;
                    let skip = (c.bug == Bug::FollowerEarly && !self.is_lead(n))
                        || (c.bug == Bug::LeaderEarly && self.is_lead(n));
                    let need = if c.relaxed { ver } else { r };
                    if !skip && self.relknown(n) < need {
                        no!()
                    }
                    let r = if c.bug == Bug::RAfterValue { self.nodes[n].applied } else { r };
                    self.ops[i].ph = Ph::Fly { ver, r };
                } else {
                    no!()
                }
            }
            ODel(i) => {
                let i = match self.ops.iter().position(|x| x.id == i) {
                    Some(i) => i,
                    None => no!(),
                };
                let o = self.ops[i].clone();
                if let Ph::Fly { ver, r } = o.ph {
                    self.ops.remove(i);
                    if o.slot != 255 {
                        let fe = &mut self.fes[o.slot as usize];
                        let k = o.k as usize;
                        let mut ok = fe.sess.is_some()
                            && fe.base != NOBASE
                            && r >= fe.base
                            && r >= fe.floor[k];
                        if c.bug == Bug::NoFloor {
                            ok = fe.sess.is_some() && fe.base != NOBASE;
                        }
                        if c.bug == Bug::NoBase {
                            ok = ok && o.sid0 == fe.nextsid;
                        }
                        if ok {
                            fe.cache[k] = Some((ver, r));
                        }
                    }
                    self.complete(o.k, o.p, ver)?;
                    if o.slot != 255 && c.bug == Bug::Coalesce {
                        while let Some(j) = self
                            .ops
                            .iter()
                            .position(|x| x.slot == o.slot && x.k == o.k && x.ph == Ph::Joined)
                        {
                            let x = self.ops.remove(j);
                            self.complete(x.k, x.p, ver)?;
                        }
                    }
                } else {
                    no!()
                }
            }
            Prune(f, k) => {
                let fe = &mut self.fes[f as usize];
                let k = k as usize;
                if fe.floor[k] == 0 {
                    no!()
                }
                if c.bug != Bug::FloorForgotten {
                    fe.base = fe.base.max(fe.floor[k]);
                }
                fe.floor[k] = 0;
            }
        }
        if c.bug == Bug::Coalesce {
            // joined reads whose carrier went away retry
            for i in 0..self.ops.len() {
                if self.ops[i].ph == Ph::Joined {
                    let (s, k) = (self.ops[i].slot, self.ops[i].k);
                    if !self.ops.iter().any(|o| {
                        o.slot == s
                            && o.k == k
                            && matches!(o.ph, Ph::Conf { .. } | Ph::Got { .. } | Ph::Fly { .. })
                    }) {
                        self.ops[i].ph = Ph::Miss;
                    }
                }
            }
        }
        Ok(true)
    }
}
fn l_push(l: &mut Lead, r: Renew) {
    l.renews.push(r);
}

/// Candidates with weights (not all are enabled; step says).
pub fn candidates(w: &World, c: &Cfg, out: &mut Vec<(Act, u32)>) {
    use Act::*;
    out.clear();
    let lb = if c.bfs {
        let mut x = 1u8;
        while w.ops.iter().any(|o| o.id == x)
            || w.reqs.iter().any(|o| o.id == x)
            || w.anss.iter().any(|o| o.id == x)
            || w.hellos.iter().any(|o| o.sid == x)
            || w.streams.iter().any(|o| o.sid == x)
            || w.fes.iter().any(|f| f.nextsid >= x)
            || w.nodes
                .iter()
                .any(|n| n.lead.as_ref().map_or(false, |l| l.renews.iter().any(|r| r.id == x)))
        {
            x += 1
        }
        x
    } else {
        w.label + 1
    };
    if w.b_tick > 0 {
        out.push((Tick(0), 14));
    }
    for n in 0..N as u8 {
        let nd = &w.nodes[n as usize];
        if w.b_elect > 0 && !w.is_lead(n as usize) {
            for v in [0b011u8, 0b101, 0b110] {
                if v >> n & 1 == 1 {
                    out.push((Elect(n, v), 2));
                }
            }
        }
        if nd.applied < nd.commit {
            out.push((Apply(n), 30));
        }
        if w.b_crash > 0 {
            out.push((CrashNode(n), 1));
        }
        if w.is_lead(n as usize) {
            let l = nd.lead.as_ref().unwrap();
            if w.nodes.iter().any(|x| x.term > nd.term) {
                out.push((StepDown(n), 1));
            }
            for f in 0..N as u8 {
                if f != n {
                    out.push((Repl(n, f), 20));
                }
            }
            out.push((Commit(n), 30));
            if w.b_write > 0 {
                for m in 1..(1u8 << c.keys) {
                    out.push((Propose(n, m), 6));
                }
            }
            if !l.writes.is_empty() {
                out.push((AckW(n), 30));
            }
            out.push((Release(n), 40));
            for i in l.renews.iter().map(|x| x.id) {
                for f in 0..N as u8 {
                    if f != n {
                        out.push((RAck(n, i, f), 20));
                    }
                }
                out.push((Answer(n, i), 30));
            }
            for h in &l.holders {
                if let Some(s) = &h.sess {
                    out.push((LClose(n, s.sid), 1));
                }
                out.push((Remove(n, h.nonce), 4));
            }
            if w.b_join > 0 {
                for f in 0..S as u8 {
                    out.push((Register(f, n), 20));
                }
            }
        }
        let rk = w.relknown(n as usize);
        for m in 0..N as u8 {
            if m != n && w.nodes[m as usize].relk < rk {
                out.push((Feed(n, m), 12));
            }
        }
    }
    for f in 0..S as u8 {
        let fe = &w.fes[f as usize];
        if w.b_conn > 0 {
            for n in 0..N as u8 {
                if w.is_lead(n as usize) {
                    out.push((Connect(f, n, lb), if fe.sess.is_none() { 25 } else { 6 }));
                }
            }
        }
        if fe.sess.is_some() {
            out.push((Break(f), 1));
            if c.bug == Bug::CloseBeforeDrop {
                out.push((CloseUp(f), 1));
            }
            if w.b_renew > 0 && fe.base != NOBASE {
                out.push((AskRenew(f, lb), 8));
            }
        }
        if w.b_crash > 0 {
            out.push((CrashFe(f), 1));
        }
        for k in 0..c.keys as u8 {
            if w.b_op > 0 && w.ops.len() < c.maxops {
                out.push((Read(f, k, lb), 10));
            }
            if fe.floor[k as usize] > 0 {
                out.push((Prune(f, k), 1));
            }
        }
    }
    if w.b_op > 0 && w.ops.len() < c.maxops {
        for k in 0..c.keys as u8 {
            out.push((Read(255, k, lb), 2));
        }
    }
    for i in w.hellos.iter().map(|x| x.sid) {
        out.push((RHello(i), 25));
        out.push((DropNet(2, i), 1));
    }
    for i in w.reqs.iter().map(|x| x.id) {
        out.push((RRenew(i, false), 20));
        if w.b_dup > 0 {
            out.push((RRenew(i, true), 1));
        }
        out.push((DropNet(0, i), 1));
    }
    for i in w.anss.iter().map(|x| x.id) {
        out.push((RAns(i, false), 15));
        if w.b_dup > 0 {
            out.push((RAns(i, true), 1));
        }
        out.push((DropNet(1, i), 1));
    }
    for s in w.streams.iter() {
        if !s.down.is_empty() {
            out.push((DownD(s.sid), 20));
        }
        if !s.up.is_empty() {
            out.push((UpD(s.sid), 20));
        }
    }
    for o in w.ops.iter() {
        let i = o.id;
        match o.ph {
            Ph::Hit0 | Ph::Hit1(_) | Ph::Hit2(..) => out.push((Hit(i), 20)),
            Ph::Miss => {
                for l in 0..N as u8 {
                    if w.is_lead(l as usize) {
                        for s in 0..N as u8 {
                            out.push((Send(i, s, l), 8));
                        }
                    }
                }
            }
            Ph::Conf { leader, acks, term, .. } => {
                if w.nodes[leader as usize].lead.as_ref().map_or(true, |l| l.term != term) {
                    out.push((OFail(i), 10));
                }
                if !maj(acks) {
                    for f in 0..N as u8 {
                        if f != leader {
                            out.push((OAck(i, f), 15));
                        }
                    }
                }
                out.push((ORead(i), 20));
            }
            Ph::Got { .. } => out.push((OAns(i), 25)),
            Ph::Fly { .. } => out.push((ODel(i), 12)),
            Ph::Joined => {}
        }
    }
}
