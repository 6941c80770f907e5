/// Random numbers of one host. Not for secrets that must withstand an attacker who sees other
/// outputs, except [`Random::fill`] in production, which is the operating system's generator.
pub trait Random: Send + Sync {
    /// Fills `bytes` with random bytes.
    fn fill(&self, bytes: &mut [u8]);

    /// A random number.
    fn u64(&self) -> u64 {
        let mut bytes = [0; 8];
        self.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// A random number from 0 to `bound - 1`; 0 if `bound` is 0. The bias for bounds far below
    /// 2^64 is negligible.
    fn below(&self, bound: u64) -> u64 {
        ((u128::from(self.u64()) * u128::from(bound)) >> 64) as u64
    }

    /// `2 * bytes` random lower-case hexadecimal digits.
    fn hex(&self, bytes: usize) -> String {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut raw = vec![0; bytes];
        self.fill(&mut raw);
        raw.iter()
            .flat_map(|b| [DIGITS[usize::from(b >> 4)], DIGITS[usize::from(b & 15)]])
            .map(char::from)
            .collect()
    }
}
