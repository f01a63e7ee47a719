//! `lb-agent explain`: what becomes of a packet, and why.
//!
//! The answer comes from the code that the kernel programs run ([`lb_common`]), over the pinned
//! maps; nothing is written. The steps before it are the same stages one by one, for people.

mod answer;
mod arguments;
mod explanation;
mod packet;
mod probe;
mod programs;
mod question;
mod routes;
mod run;
mod steps;
mod surroundings;
mod tables;
mod verdict;

pub use self::answer::explain;
pub use self::arguments::ExplainArguments;
pub use self::explanation::{Candidate, Explanation, Fate, Step};
pub use self::probe::{RouteLookup, Routes};
pub use self::question::{Endpoint, From, PacketProtocol, Question};
pub use self::routes::KernelRoutes;
pub use self::run::run;
pub use self::surroundings::Surroundings;
