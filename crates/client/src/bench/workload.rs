//! What is asked for: kinds of requests by their shares, items by their popularity, each request
//! as the bytes that go over the wire.

use std::{fmt, io::Write, str::FromStr, sync::Arc};

use pygmy_protocol::Env;

/// A kind of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `GET /lookup/{itemNumber}`.
    Lookup,
    /// `GET /search/{topic}`: the first page, 100 items at most.
    Search,
    /// `POST /buy/{itemNumber}`: one copy, with a key.
    Buy,
}

impl Kind {
    /// All of them, each at the place that it has as a number.
    pub const ALL: [Kind; 3] = [Kind::Lookup, Kind::Search, Kind::Buy];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Lookup => "lookup",
            Kind::Search => "search",
            Kind::Buy => "buy",
        }
    }
}

/// How often each kind is asked for, in relation to the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mix([u32; 3]);

/// Largest share; leaves their sum far from overflow.
const SHARE_MAX: u32 = 1_000_000;

impl Mix {
    /// The share of a kind.
    pub fn share(self, kind: Kind) -> u32 {
        self.0[kind as usize]
    }

    fn pick(self, random: &mut Random) -> Kind {
        let sum = self.0.iter().map(|share| u64::from(*share)).sum();
        let mut left = random.below(sum);
        for kind in Kind::ALL {
            match left.checked_sub(u64::from(self.share(kind))) {
                Some(rest) => left = rest,
                None => return kind,
            }
        }
        unreachable!("the shares add up to their sum")
    }
}

impl FromStr for Mix {
    type Err = String;

    /// `lookup=80,search=10,buy=10`: what is not named is not asked for.
    fn from_str(text: &str) -> Result<Mix, String> {
        let mut shares = [None; 3];
        for part in text.split(',') {
            let (name, share) = part.split_once('=').ok_or_else(|| form(part))?;
            let kind = Kind::ALL.into_iter().find(|kind| kind.name() == name.trim());
            let kind = kind.ok_or_else(|| form(part))?;
            let share: u32 = share.trim().parse().map_err(|_| form(part))?;
            if share > SHARE_MAX {
                return Err(format!("a share is at most {SHARE_MAX}"));
            }
            if shares[kind as usize].replace(share).is_some() {
                return Err(format!("{} is named twice", kind.name()));
            }
        }
        let shares = shares.map(Option::unwrap_or_default);
        if shares.iter().all(|share| *share == 0) {
            return Err("at least one share must be above 0".to_owned());
        }
        Ok(Mix(shares))
    }
}

fn form(part: &str) -> String {
    format!("{part:?} is not lookup=N, search=N or buy=N with a whole number N")
}

impl fmt::Display for Mix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let asked = Kind::ALL.into_iter().filter(|kind| self.share(*kind) > 0);
        let parts = asked.map(|kind| format!("{}={}", kind.name(), self.share(kind)));
        f.write_str(&parts.collect::<Vec<_>>().join(","))
    }
}

/// The item numbers of a run: `count` in a row. All have 16 digits, so that a number can be put
/// into the bytes of a request, and are above what people and ISBNs use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ItemNumbers {
    /// The lowest.
    pub first: u64,
    /// How many.
    pub count: u32,
}

/// Most items of a run.
pub const ITEMS_MAX: u32 = 1_000_000;
const DIGITS: usize = 16;
/// The lowest number of 16 digits.
const LOWEST: u64 = 1_000_000_000_000_000;
/// From here on there is room for the items of a run below 2^53.
const HIGHEST: u64 = 9_000_000_000_000_000;

impl ItemNumbers {
    /// `count` numbers in a row, drawn from so many that no two runs meet.
    pub fn random(env: &Env, count: u32) -> ItemNumbers {
        ItemNumbers { first: LOWEST + env.random.below(HIGHEST - LOWEST), count }
    }
}

/// Which items are wanted.
#[derive(Debug, Clone, PartialEq)]
pub enum Popularity {
    /// All equally.
    Uniform,
    /// The n-th in proportion to n^-s (Zipf): where a random number from 0 to 1 falls in these
    /// sums says which.
    Zipf(Arc<[f64]>),
}

impl Popularity {
    /// Zipf's law with exponent `s` for `count` items.
    pub fn zipf(s: f64, count: u32) -> Popularity {
        let mut sum = 0.0;
        let sums = (1..=count).map(|rank| {
            sum += f64::from(rank).powf(-s);
            sum
        });
        let sums: Vec<f64> = sums.collect();
        Popularity::Zipf(sums.into_iter().map(|part| part / sum).collect())
    }

    fn pick(&self, count: u32, random: &mut Random) -> u64 {
        match self {
            Popularity::Uniform => random.below(u64::from(count)),
            Popularity::Zipf(sums) => {
                let place = random.unit();
                let index = sums.partition_point(|sum| *sum <= place);
                (index as u64).min(u64::from(count) - 1)
            }
        }
    }
}

/// What a run asks for.
#[derive(Debug, Clone)]
pub struct Workload {
    /// Shares of the kinds.
    pub mix: Mix,
    /// Which items there are.
    pub numbers: ItemNumbers,
    /// Which of them are wanted.
    pub popularity: Popularity,
    /// Their topic; no characters that would have to be encoded.
    pub topic: String,
}

/// Draws the requests of one connection.
pub(crate) struct Requests {
    workload: Arc<Workload>,
    random: Random,
    /// Names the keys of this connection; the rest of a key counts.
    key_prefix: String,
    keys: u64,
}

/// One request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Drawn {
    pub(crate) kind: Kind,
    item: u64,
    key: u64,
}

impl Requests {
    pub(crate) fn new(env: &Env, workload: &Arc<Workload>) -> Requests {
        let random = Random(env.random.u64());
        Requests { workload: Arc::clone(workload), random, key_prefix: env.random.hex(8), keys: 0 }
    }

    pub(crate) fn draw(&mut self) -> Drawn {
        let Workload { mix, numbers, popularity, .. } = &*self.workload;
        let kind = mix.pick(&mut self.random);
        let item = numbers.first + popularity.pick(numbers.count, &mut self.random);
        self.keys += u64::from(kind == Kind::Buy);
        Drawn { kind, item, key: self.keys }
    }

    /// The requests of each kind as a server at `authority` wants them, in the order of
    /// [`Kind::ALL`].
    pub(crate) fn templates(&self, authority: &str, prefix: &str) -> [Template; 3] {
        let item = "0".repeat(DIGITS);
        let key = format!("{}{item}", self.key_prefix);
        let topic = &self.workload.topic;
        let host = format!("Host: {authority}\r\n");
        [
            format!("GET {prefix}/lookup/{item} HTTP/1.1\r\n{host}\r\n"),
            format!("GET {prefix}/search/{topic} HTTP/1.1\r\n{host}\r\n"),
            format!(
                "POST {prefix}/buy/{item} HTTP/1.1\r\n{host}Idempotency-Key: {key}\r\n\
                 Content-Length: 0\r\n\r\n"
            ),
        ]
        .map(|text| Template::new(text, &item))
    }
}

/// A request with places for an item's number and a key's count.
pub(crate) struct Template {
    bytes: Vec<u8>,
    item_at: Option<usize>,
    key_at: Option<usize>,
}

impl Template {
    fn new(text: String, place: &str) -> Template {
        // The first is in the path, the last at the end of the key.
        let item_at = text.find(place);
        let key_at = text.rfind(place).filter(|at| Some(*at) != item_at);
        Template { bytes: text.into_bytes(), item_at, key_at }
    }

    /// The bytes of `drawn`.
    pub(crate) fn fill(&mut self, drawn: Drawn) -> &[u8] {
        for (at, number) in [(self.item_at, drawn.item), (self.key_at, drawn.key)] {
            if let Some(at) = at {
                let place = &mut self.bytes[at..at + DIGITS];
                // Numbers of a run have so many digits; a count never gets that far.
                let _ = write!(&mut place[..], "{number:0width$}", width = DIGITS);
            }
        }
        &self.bytes
    }
}

/// A small generator (splitmix64, <https://prng.di.unimi.it/splitmix64.c>): a system call for each
/// request would cost as much as the request.
struct Random(u64);

impl Random {
    fn u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.u64()) * u128::from(bound)) >> 64) as u64
    }

    /// From 0 to 1, without 1.
    fn unit(&mut self) -> f64 {
        (self.u64() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requests(mix: &str, popularity: Popularity) -> Requests {
        let numbers = ItemNumbers { first: LOWEST, count: 10 };
        let topic = "bench-1".to_owned();
        let workload = Workload { mix: mix.parse().unwrap(), numbers, popularity, topic };
        Requests::new(&Env::production(), &Arc::new(workload))
    }

    #[test]
    fn a_mix_is_read_and_written() {
        let mix: Mix = "buy=1, lookup=3".parse().unwrap();
        assert_eq!(mix.to_string(), "lookup=3,buy=1");
        for bad in ["", "buy", "buy=x", "buy=-1", "buy=0", "buy=1,buy=2", "sell=1", "buy=1000001"] {
            bad.parse::<Mix>().unwrap_err();
        }
    }

    #[test]
    fn kinds_come_by_their_shares() {
        let mut requests = requests("lookup=80,search=15,buy=5", Popularity::Uniform);
        let mut counts = [0_u32; 3];
        for _ in 0..100_000 {
            counts[requests.draw().kind as usize] += 1;
        }
        for (count, expected) in counts.into_iter().zip([80_000_u32, 15_000, 5_000]) {
            assert!(count.abs_diff(expected) < 1_500, "{counts:?}");
        }
    }

    #[test]
    fn items_come_by_their_popularity() {
        for (popularity, first, last) in
            [(Popularity::Uniform, 10_000, 10_000), (Popularity::zipf(1.0, 10), 34_142, 3_414_u32)]
        {
            let mut requests = requests("lookup=1", popularity);
            let mut counts = [0_u32; 10];
            for _ in 0..100_000 {
                counts[(requests.draw().item - LOWEST) as usize] += 1;
            }
            assert!(counts[0].abs_diff(first) < 1_000, "{counts:?}");
            assert!(counts[9].abs_diff(last) < 1_000, "{counts:?}");
        }
    }

    #[test]
    fn requests_are_what_the_store_reads() {
        let requests = requests("buy=1", Popularity::Uniform);
        let mut templates = requests.templates("shop:80", "/a");
        let drawn = Drawn { kind: Kind::Buy, item: LOWEST + 7, key: 12 };
        let mut text =
            |kind: Kind| String::from_utf8(templates[kind as usize].fill(drawn).to_vec()).unwrap();
        assert_eq!(
            text(Kind::Lookup),
            "GET /a/lookup/1000000000000007 HTTP/1.1\r\nHost: shop:80\r\n\r\n"
        );
        assert_eq!(text(Kind::Search), "GET /a/search/bench-1 HTTP/1.1\r\nHost: shop:80\r\n\r\n");
        let key = format!("{}0000000000000012", requests.key_prefix);
        assert_eq!(
            text(Kind::Buy),
            format!(
                "POST /a/buy/1000000000000007 HTTP/1.1\r\nHost: shop:80\r\nIdempotency-Key: \
                 {key}\r\nContent-Length: 0\r\n\r\n"
            )
        );
        assert_eq!(key.len(), 32, "as long as the keys of other clients");
    }

    #[test]
    fn numbers_of_a_run_keep_their_length() {
        let env = Env::production();
        for _ in 0..1000 {
            let numbers = ItemNumbers::random(&env, ITEMS_MAX);
            let last = numbers.first + u64::from(numbers.count) - 1;
            assert_eq!((numbers.first.to_string().len(), last.to_string().len()), (DIGITS, DIGITS));
            assert!(last <= pygmy_protocol::item::MAX_NUMBER);
        }
    }
}
