import { svelte } from "@sveltejs/vite-plugin-svelte";
import { defineConfig } from "vitest/config";

export default defineConfig({
  plugins: [svelte()],
  build: {
    target: "es2022",
    sourcemap: false,
    // A page each; further splitting of local files would save nothing.
    rolldownOptions: { input: ["index.html", "popup.html"] },
    chunkSizeWarningLimit: 2000,
  },
  test: {
    projects: [
      {
        extends: true,
        resolve: { conditions: ["browser"] },
        test: { name: "unit", include: ["src/**/*.test.ts"], environment: "jsdom" },
      },
      {
        extends: true,
        test: {
          name: "e2e",
          include: ["e2e/**/*.test.ts"],
          environment: "node",
          testTimeout: 180_000,
          hookTimeout: 180_000,
          fileParallelism: false,
        },
      },
      {
        extends: true,
        test: { name: "pictures", include: ["e2e/pictures.ts"], environment: "node", testTimeout: 180_000, fileParallelism: false },
      },
      {
        extends: true,
        test: { name: "measure", include: ["e2e/measure.ts"], environment: "node", testTimeout: 300_000, hookTimeout: 60_000 },
      },
    ],
  },
});
