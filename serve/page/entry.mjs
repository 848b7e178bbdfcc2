// What the page needs of NiiVue, as one file.
export { NVImage, Niivue } from "@niivue/niivue";
