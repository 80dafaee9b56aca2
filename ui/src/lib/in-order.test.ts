import { describe, expect, it } from "vitest";

import { inOrder } from "./in-order";

describe("work in order", () => {
  it("waits for what is slower, and for what fails", async () => {
    const run = inOrder();
    const done: string[] = [];
    const work = (name: string, ms: number) => async (): Promise<void> => {
      await new Promise((resolve) => setTimeout(resolve, ms));
      done.push(name);
      if (name === "failed") throw new Error(name);
    };
    const slow = run(work("slow", 20));
    const failed = run(work("failed", 5));
    const quick = run(work("quick", 0));
    await expect(failed).rejects.toThrow("failed");
    await Promise.all([slow, quick]);
    expect(done).toEqual(["slow", "failed", "quick"]);
  });
});
