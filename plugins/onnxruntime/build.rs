//! Link arguments of the library.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        // The registered operators are static, and ORT closes the library with its session.
        println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
        // Every function of ORT comes from the table passed in: nothing may stay undefined.
        println!("cargo:rustc-cdylib-link-arg=-Wl,-z,defs");
    }
}
