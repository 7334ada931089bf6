//! Who uses the sample platform: users by a Zipf law, their teams and keys.

use rand::Rng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::{FEWEST_USERS, MOST_USERS};

/// The teams; users are spread over them by rank, so that each has a few heavy
/// users whatever the seed.
pub const TEAMS: [&str; 8] = ["research", "platform", "agents", "support", "search", "data", "mobile", "growth"];

/// The team whose default model is changed in the story of the sample.
pub const SPIKE_TEAM: &str = "agents";

/// Exponent of the Zipf law: the user of rank k is weighed 1 / k^1.07.
const ZIPF: f64 = 1.07;

const FIRST: [&str; 25] = [
    "amara", "anders", "bela", "chiara", "diego", "elif", "fatima", "goran", "hana", "ines", "jonas", "kenji", "leila",
    "mateo", "nadia", "oskar", "priya", "quentin", "rosa", "samir", "tomas", "uma", "viktor", "wanjiru", "yusuf",
];
const LAST: [&str; 24] = [
    "achterberg",
    "bianchi",
    "castillo",
    "dimitrov",
    "eriksen",
    "farouk",
    "grant",
    "hoang",
    "ivanova",
    "jansen",
    "kimura",
    "lindqvist",
    "moreau",
    "novak",
    "okafor",
    "petrov",
    "quispe",
    "rossi",
    "sato",
    "tanaka",
    "ueda",
    "vargas",
    "weiss",
    "zhang",
];

/// A user of the platform.
#[derive(Clone, Debug)]
pub struct User {
    /// `amara.okafor`.
    pub id: String,
    /// One of [`TEAMS`].
    pub team: &'static str,
    /// One or two keys.
    pub keys: Vec<String>,
}

/// All users, heaviest first.
#[derive(Clone, Debug)]
pub struct People {
    /// The users by rank.
    pub users: Vec<User>,
    cumulative: Vec<f64>,
}

impl People {
    /// `count` users, from [`FEWEST_USERS`] to [`MOST_USERS`].
    pub fn new(rng: &mut ChaCha8Rng, count: usize) -> Self {
        let count = count.clamp(FEWEST_USERS, MOST_USERS);
        let mut names: Vec<String> =
            FIRST.iter().flat_map(|first| LAST.iter().map(move |last| format!("{first}.{last}"))).collect();
        names.shuffle(rng);
        names.truncate(count);
        let users: Vec<User> = names
            .into_iter()
            .enumerate()
            .map(|(rank, id)| User {
                id,
                team: TEAMS[rank % TEAMS.len()],
                keys: (0..1 + usize::from(rank % 3 == 0)).map(|_| format!("key_{:08x}", rng.random::<u32>())).collect(),
            })
            .collect();
        let mut sum = 0.0;
        let cumulative = (1..=users.len())
            .map(|rank| {
                sum += (rank as f64).powf(-ZIPF);
                sum
            })
            .collect();
        Self { users, cumulative }
    }

    /// One user by the Zipf law, and one of the user's keys.
    pub fn draw(&self, rng: &mut ChaCha8Rng) -> (&User, &str) {
        let total = self.cumulative.last().copied().unwrap_or(1.0);
        let point = rng.random_range(0.0..total);
        let rank = self.cumulative.partition_point(|edge| *edge <= point);
        let user = &self.users[rank.min(self.users.len() - 1)];
        // The second key is a spare: a fifth of the requests.
        let spare = user.keys.len() > 1 && rng.random_bool(0.2);
        (user, &user.keys[usize::from(spare)])
    }
}
