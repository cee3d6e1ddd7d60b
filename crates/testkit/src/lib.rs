//! What tests share: an oracle store, a contract that every store is held to, seeded keys and
//! batches, and real processes to start and kill. It is no part of the product and knows no server.

mod contract;
mod cpp;
mod oracle;
mod pretended;
mod process;
mod random;

pub use contract::{Outcome, RowStore, check_contract};
pub use cpp::CppProgram;
pub use oracle::{OracleStaged, OracleStore};
pub use pretended::{PretendedCuda, under_pretended_cuda};
pub use process::{Process, free_loopback_port};
pub use random::{Random, ZipfKeys, adversarial_key, random_gradients, random_key_batch};
