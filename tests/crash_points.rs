//! Crash points.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod store;

use store::{Store, image, run};

#[test]
fn smoke() {
    run(async {
        let image = image(256);
        let store = Store::create(&image, None).await.unwrap();
        let vol = store.create_blob(8, true).await.unwrap();
        let blob = store.open(vol).await.unwrap();
        store.write_cluster(&blob, 0, 1).await.unwrap();
        let snap1 = store.snapshot(vol).await.unwrap();
        store.write_cluster(&blob, 1, 2).await.unwrap();
        println!("{:?}", store.describe(vol).await.unwrap());
        println!("{:?}", store.describe(snap1).await.unwrap());
        store.detach(vol).await.unwrap();
        println!("{:?}", store.describe(vol).await.unwrap());
        println!("{:?}", store.describe(snap1).await.unwrap());
        blob.close().await.unwrap();
        store.delete(snap1).await.unwrap();
        println!(
            "{:?} {} {}",
            store.blob_ids().await.unwrap(),
            store.free_clusters(),
            store.used_md_pages()
        );
        store.unload().await.unwrap();
        let store = Store::load(&image, None).await.unwrap();
        println!("{:?}", store.describe(vol).await.unwrap());
        store.unload().await.unwrap();
    });
}
