//! `lb-agent explain`: predicts what happens to a packet, and why.
//!
//! The verdict comes from the code of the kernel programs ([`lb_common`]), run on the pinned maps.
//! The maps are not written. The steps before the verdict show the stages of that code for users.

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
pub use self::explanation::{Candidate, Explanation, Fate, Stage};
pub use self::probe::{RouteLookup, Routes};
pub use self::question::{Endpoint, From, PacketProtocol, Question};
pub use self::routes::KernelRoutes;
pub use self::run::run;
pub use self::surroundings::Surroundings;
