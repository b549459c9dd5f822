//! stub
use crate::failure::Failure;
use ratplus_kernels::cuda::Device;
/// x
#[derive(clap::Args)]
pub struct Options {}
/// x
pub fn run(_device: &'static Device, _options: &Options) -> Result<(), Failure> {
    Ok(())
}
